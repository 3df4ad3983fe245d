// The load of `make bench-delivery`: many readers of event streams (`load read`), or who publishes the
// events (`load publish`). A compiled program, for a comfortable one would be most of what is measured
// on two cores.
//
// It is told what to do by lines of JSON on its standard input, answers each with one on its standard
// output, and ends with its input, as `benchmarks/worker.py` does. The first line says where to go.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"syscall"
	"time"
)

// Command is what follows the first line: ["name", [arguments]].
type Command struct {
	name      string
	arguments []float64
}

func (c *Command) UnmarshalJSON(line []byte) error {
	return json.Unmarshal(line, &[]any{&c.name, &c.arguments})
}

func (c *Command) number(index int) int { return int(c.arguments[index]) }

func (c *Command) seconds(index int) time.Duration {
	return time.Duration(c.arguments[index] * float64(time.Second))
}

var input = bufio.NewReaderSize(os.Stdin, 1<<16)

// listen reads one line into `value`; the end of the input is the end of the program.
func listen(value any) {
	line, err := input.ReadBytes('\n')
	if err != nil {
		os.Exit(0)
	}
	if err := json.Unmarshal(line, value); err != nil {
		fail("not understood: %v", err)
	}
}

func answer(value any) {
	if err := json.NewEncoder(os.Stdout).Encode(value); err != nil {
		fail("standard output: %v", err)
	}
}

func fail(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, "load: "+format+"\n", arguments...)
	os.Exit(1)
}

// began and beganNanos are the same moment: Go's own monotonic clock costs no system call, and is
// CLOCK_MONOTONIC, the one for all processes of a machine, but for where it begins.
var began, beganNanos = time.Now(), clockMonotonic()

func clockMonotonic() int64 {
	var now syscall.Timespec
	const monotonic = 1
	if _, _, err := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, monotonic, pointer(&now), 0); err != 0 {
		fail("the clock: %v", err)
	}
	return now.Nano()
}

func nanos() int64 { return beganNanos + int64(time.Since(began)) }

func allowManyFiles() {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil {
		limit.Cur = limit.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
}

func main() {
	allowManyFiles()
	role := ""
	if len(os.Args) == 2 {
		role = os.Args[1]
	}
	switch role {
	case "read":
		read()
	case "publish":
		publish()
	default:
		fail("either `load read` or `load publish`")
	}
}
