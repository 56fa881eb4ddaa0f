// Command compose-check loads a compose file with compose-go, the loader that Docker Compose itself is made of: schema,
// interpolation, references. It prints the services that it found; where the file is wrong, the reason, and exits with 1.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	if len(os.Args) != 2 {
		fail("usage: compose-check FILE")
	}
	options, err := cli.NewProjectOptions(os.Args[1:], cli.WithOsEnv)
	if err != nil {
		fail(err)
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		fail(err)
	}
	fmt.Println(os.Args[1]+": valid; services:", project.ServiceNames())
}

func fail(why any) {
	fmt.Fprintln(os.Stderr, why)
	os.Exit(1)
}
