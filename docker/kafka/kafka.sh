#!/usr/bin/env bash
# A real Apache Kafka on this machine, without Docker: start, stop, status, wipe.
#
#   KAFKA_PORT  loopback port (9092); the controller takes the next one
#   KAFKA_DIR   data, log and pid of this instance (.kafka/default in the repository)
#   KAFKA_LIB   the jars, shared by all instances (.kafka/lib in the repository)
#   KAFKA_HEAP  memory of the broker (512m)
set -euo pipefail

script=${BASH_SOURCE[0]}
case $script in */*) here=${script%/*} ;; *) here=. ;; esac # without tools: their absence is told below
here=$(cd "$here" && pwd)
repository=$(cd "$here/../.." && pwd)
port=${KAFKA_PORT:-9092}
directory=${KAFKA_DIR:-$repository/.kafka/default}
lib=${KAFKA_LIB:-$repository/.kafka/lib}
heap=${KAFKA_HEAP:-512m}
pid_file=$directory/broker.pid
log_file=$directory/broker.log
properties=$directory/server.properties
start_seconds=60
stop_seconds=30

fail() {
    echo "kafka: $*" >&2
    exit 1
}

java_version() { # prints 17 for "17.0.15", nothing without java
    java -version 2>&1 | sed -nE '1s/.*version "([0-9]+).*/\1/p'
}

require_port() {
    [[ $port =~ ^[1-9][0-9]{0,4}$ ]] && [ "$port" -le 65534 ] ||
        fail "KAFKA_PORT is '$port': name a port from 1 to 65534 (the controller takes the next one)"
}

require_java() {
    command -v java >/dev/null || fail "java is missing: install a Java 17 runtime (openjdk-17-jre-headless)"
    local version
    version=$(java_version) || version= # a java that fails is told below
    [ -n "$version" ] || fail "java does not run: $(java -version 2>&1 | head -1)"
    [ "$version" -ge 17 ] || fail "java $version is too old: Kafka 4 needs Java 17 (openjdk-17-jre-headless)"
}

resolve_jars() {
    # The stamp holds the pom, so that another version of Kafka is fetched anew.
    cmp -s "$here/pom.xml" "$lib/pom.xml" && return
    command -v mvn >/dev/null || fail "mvn is missing: install Maven (maven), which fetches Kafka's jars"
    echo "kafka: fetching the jars"
    # In a folder of its own, and moved when whole: another start may be fetching them at the same time.
    local fetched="$lib/fetching.$$" told
    mkdir -p "$fetched" 2>/dev/null || fail "$lib cannot be made: choose a folder with KAFKA_LIB"
    if ! mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies \
        -DoutputDirectory="$fetched" -DincludeScope=runtime >"$fetched/mvn.log" 2>&1 </dev/null; then
        told=$(grep -m1 ERROR "$fetched/mvn.log" || tail -1 "$fetched/mvn.log")
        rm -rf "$fetched"
        fail "Maven could not fetch the jars: $told"
    fi
    cp "$here/pom.xml" "$fetched/pom.xml"
    if ! cmp -s "$here/pom.xml" "$lib/pom.xml"; then # else the other one was quicker
        rm -f "$lib"/*.jar
        mv "$fetched"/*.jar "$lib" && mv "$fetched/pom.xml" "$lib"
    fi
    rm -rf "$fetched"
}

running() { # a pid may have been given to another program since
    [ -f "$pid_file" ] && ps -ww -p "$(cat "$pid_file")" -o args= 2>/dev/null | grep -qF "$properties"
}

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

kafka_tool() { java -Xmx128m -cp "$lib/*" -Dorg.slf4j.simpleLogger.defaultLogLevel=error "$@"; }

format_once() {
    [ -f "$directory/data/meta.properties" ] && return
    local id
    id=$(kafka_tool kafka.tools.StorageTool random-uuid)
    kafka_tool kafka.tools.StorageTool format --cluster-id "$id" --config "$properties" >"$log_file" 2>&1 ||
        fail "the storage in $directory/data cannot be formatted, see $log_file"
}

start() {
    if running; then
        port=$(sed -nE 's/^advertised.listeners=.*:([0-9]+)$/\1/p' "$properties")
        echo "kafka: already running on 127.0.0.1:$port"
        return
    fi
    require_port
    require_java
    resolve_jars
    local each
    for each in "$port" $((port + 1)); do
        ! listening "$each" || fail "port $each is taken by another program; choose one with KAFKA_PORT"
    done
    mkdir -p "$directory" 2>/dev/null || fail "$directory cannot be made: choose a folder with KAFKA_DIR"
    sed -e "s|@PORT@|$port|g" -e "s|@CONTROLLER_PORT@|$((port + 1))|g" -e "s|@DATA@|$directory/data|g" \
        "$here/server.properties" >"$properties"
    format_once
    nohup java "-Xms$heap" "-Xmx$heap" -XX:+UseSerialGC -cp "$lib/*" \
        -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -Dorg.slf4j.simpleLogger.showDateTime=true \
        kafka.Kafka "$properties" >>"$log_file" 2>&1 </dev/null &
    echo $! >"$pid_file"
    wait_until_up
    echo "kafka: running on 127.0.0.1:$port (data and log in $directory)"
}

wait_until_up() {
    local deadline=$((SECONDS + start_seconds))
    until listening "$port"; do
        running || fail "the broker ended while starting: $(grep -m1 -E 'ERROR|Exception' "$log_file" || tail -1 "$log_file")"
        [ "$SECONDS" -lt "$deadline" ] || fail "the broker does not answer after $start_seconds s, see $log_file"
        sleep 0.1
    done
}

stop() {
    if ! running; then
        rm -f "$pid_file"
        echo "kafka: not running"
        return
    fi
    local pid deadline=$((SECONDS + stop_seconds))
    pid=$(cat "$pid_file")
    kill "$pid"
    while kill -0 "$pid" 2>/dev/null; do
        [ "$SECONDS" -lt "$deadline" ] || { kill -9 "$pid"; break; }
        sleep 0.1
    done
    rm -f "$pid_file"
    echo "kafka: stopped"
}

status() {
    running || { echo "kafka: not running"; exit 1; }
    echo "kafka: running on 127.0.0.1:$(sed -nE 's/^advertised.listeners=.*:([0-9]+)$/\1/p' "$properties") (pid $(cat "$pid_file"))"
}

wipe() {
    stop
    rm -rf "$directory/data" "$properties" "$log_file"
    echo "kafka: data removed from $directory"
}

case "${1:-}" in
    start | stop | status | wipe) "$1" ;;
    *) fail "usage: $0 start|stop|status|wipe" ;;
esac
