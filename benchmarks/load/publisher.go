package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"
)

// What the server has not taken so long after the last text was due, it does not get.
const takenSeconds = 5 * time.Second

const pending = 100_000

// Target is the first line of `load publish`.
type Target struct {
	Address string
	// The head of a POST without its length; none where texts are written as lines.
	Head   string
	Prefix string
	// For POSTs: so many are in flight at most.
	Connections int
}

// Published is what became of the texts of one round.
type Published struct {
	Sent int `json:"sent"`
	// Milliseconds after a text was due until it was written, at the 99th percentile.
	Late float64 `json:"late"`
}

type publisher struct {
	target Target
	lines  net.Conn
}

func publish() {
	p := new(publisher)
	listen(&p.target)
	answer(nil)
	for {
		var command Command
		listen(&command)
		if command.name != "publish" { // so many a second, so many, numbered from the first
			fail("no command is called %s", command.name)
		}
		rate, count, first := command.arguments[0], command.number(1), command.number(2)
		if p.target.Head == "" {
			answer(p.writeLines(rate, count, first))
		} else {
			answer(p.post(rate, count, first))
		}
	}
}

// schedule says when each text is due; it does not wait for the server, so that a slow one shows.
type schedule struct {
	begin int64
	rate  float64
}

func newSchedule(rate float64) schedule { return schedule{nanos() + int64(time.Millisecond), rate} }

func (s schedule) due(index int) int64 { return s.begin + int64(float64(index)/s.rate*1e9) }

// wait asks the kernel itself: Go's own timers are up to a millisecond late.
func (s schedule) wait(index int) {
	if left := s.due(index) - nanos(); left > 0 {
		pause := syscall.NsecToTimespec(left)
		_ = syscall.Nanosleep(&pause, nil)
	}
}

func (p *publisher) writeLines(rate float64, count, first int) Published {
	if p.lines == nil {
		p.lines = p.dial()
	}
	plan, late := newSchedule(rate), new(histogram)
	_ = p.lines.SetWriteDeadline(time.Now().Add(time.Duration(float64(count)/rate*1e9) + takenSeconds))
	batch, line := []byte{}, make([]byte, textBytes+1)
	for index := 0; index < count; {
		plan.wait(index)
		begun, now := index, nanos()
		batch = batch[:0]
		for ; index < count && plan.due(index) <= now; index++ {
			writeText(line[:textBytes], first+index, plan.due(index))
			line[textBytes] = '\n'
			batch = append(batch, line...)
		}
		if _, err := p.lines.Write(batch); err != nil {
			// Perhaps in the middle of a line.
			_ = p.lines.Close()
			p.lines = nil
			return Published{begun, float64(late.percentile(99)) / 1e3}
		}
		for ; begun < index; begun++ {
			late.add((nanos() - plan.due(begun)) / 1000)
		}
	}
	return Published{count, float64(late.percentile(99)) / 1e3}
}

func (p *publisher) dial() net.Conn {
	made, err := net.DialTimeout("tcp4", p.target.Address, takenSeconds)
	if err != nil {
		fail("connecting: %v", err)
	}
	return made
}

type dueText struct {
	number int
	due    int64
}

func (p *publisher) post(rate float64, count, first int) Published {
	texts := make(chan dueText, pending)
	accepted := new(atomic.Int64)
	lates := make(chan *histogram, p.target.Connections)
	deadline := time.Now().Add(time.Duration(float64(count)/rate*1e9) + takenSeconds)
	for range make([]struct{}, p.target.Connections) {
		go func() { lates <- p.postFrom(texts, accepted, deadline) }()
	}
	plan := newSchedule(rate)
	for index := 0; index < count; index++ {
		plan.wait(index)
		texts <- dueText{first + index, plan.due(index)}
	}
	close(texts)
	late := new(histogram)
	for range make([]struct{}, p.target.Connections) {
		for index, counted := range (<-lates).counts {
			late.counts[index] += counted
			late.total += counted
		}
	}
	late.most = 1 << 40
	return Published{int(accepted.Load()), float64(late.percentile(99)) / 1e3}
}

// postFrom posts what is due next, one text after the other, on a connection of its own.
func (p *publisher) postFrom(texts <-chan dueText, accepted *atomic.Int64, deadline time.Time) *histogram {
	late := new(histogram)
	kept := p.dial()
	defer kept.Close()
	_ = kept.SetDeadline(deadline)
	answers := bufio.NewReader(kept)
	text := make([]byte, textBytes)
	var request bytes.Buffer
	for next := range texts {
		writeText(text, next.number, next.due)
		request.Reset()
		fmt.Fprintf(&request, "%sContent-Length: %d\r\n\r\n%s", p.target.Head, len(p.target.Prefix)+textBytes, p.target.Prefix)
		request.Write(text)
		late.add((nanos() - next.due) / 1000)
		if _, err := kept.Write(request.Bytes()); err != nil {
			return late // the others' deadline is the same
		}
		response, err := http.ReadResponse(answers, nil)
		if err != nil {
			return late
		}
		_, _ = io.Copy(io.Discard, response.Body)
		if response.StatusCode >= 300 {
			fail("a POST was answered %s", response.Status)
		}
		accepted.Add(1)
	}
	return late
}
