package main

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"syscall"
	"time"
)

const (
	// Opening at once; more would wait in the server's backlog, and time would be lost by refusals.
	openingAtOnce = 200

	openingSeconds = 60 * time.Second

	// Without an event for so long, what has not arrived is lost.
	quietSeconds = 1500 * time.Millisecond

	readBytes = 1 << 20

	// What a stalled reader's kernel takes for it; twice that is what Linux really grants.
	stalledBytes = 4096
)

// Place is the first line of `load read`.
type Place struct {
	Address string
	// The whole head of a request; TOKEN and TOPIC stand for one of the tokens and a topic's number.
	Request string
	Tokens  []string
	Topics  int
	// What stands directly before a text.
	Marker string
}

type connection struct {
	fd      int
	topic   int
	opened  bool
	stalled bool
	next    int
	// What was read of a text that is not whole yet, or of the marker before it.
	rest []byte
	// Whether what is read next comes directly behind a text.
	behind bool
	seen   []uint64
}

// Taken is what came in one round.
type Taken struct {
	Expected   int     `json:"expected"`
	Received   int     `json:"received"`
	Doubled    int     `json:"doubled"`
	Disordered int     `json:"disordered"`
	Stray      int     `json:"stray"`
	Closed     int     `json:"closed"`
	Bytes      int     `json:"bytes"`
	Seconds    float64 `json:"seconds"`
	P50        float64 `json:"p50"`
	P99        float64 `json:"p99"`
	Slowest    float64 `json:"slowest"`
}

// readers are all connections, read by one thread: what one core does not read is not delivered either.
type readers struct {
	place       Place
	epoll       int
	connections []*connection
	opening     int
	marker      []byte
	gap         int
	buffer      []byte
	first       int
	count       int
	taken       Taken
	firstDue    int64
	lastArrival int64
	latencies   *histogram
}

func read() {
	r := &readers{buffer: make([]byte, readBytes+textBytes), latencies: new(histogram)}
	listen(&r.place)
	r.marker = []byte(r.place.Marker)
	epoll, err := syscall.EpollCreate1(0)
	if err != nil {
		fail("epoll: %v", err)
	}
	r.epoll = epoll
	r.watch(0)
	answer(nil)
	for {
		r.turn(-1)
	}
}

func (r *readers) do(command Command) any {
	switch command.name {
	case "open": // so many connections, the first so many of which stall; earlier ones are closed
		return r.open(command.number(0), command.number(1))
	case "begin": // a round, of texts numbered from the first, so many
		r.begin(command.number(0), command.number(1))
		return nil
	case "take": // what came of the round, within so many seconds
		return r.take(command.seconds(0))
	case "alive":
		return len(r.connections) - r.taken.Closed
	case "resume": // seconds that each of so many connections, one after the other, waits for an event
		return r.resume(command.number(0))
	}
	fail("no command is called %s", command.name)
	return nil
}

func (r *readers) open(count, stalled int) int {
	for _, each := range r.connections {
		if each.fd >= 0 {
			r.close(each)
		}
	}
	r.connections, r.opening, r.count = nil, 0, 0
	r.taken = Taken{}
	deadline := time.Now().Add(openingSeconds)
	for len(r.connections) < count || r.opening > 0 {
		for len(r.connections) < count && r.opening < openingAtOnce {
			r.connect(len(r.connections) < stalled)
		}
		r.turn(100)
		if time.Now().After(deadline) {
			fail("%d of %d connections were not open in time", r.opening, count)
		}
	}
	if r.taken.Closed > 0 {
		fail("%d of %d connections were closed when they were opened", r.taken.Closed, count)
	}
	return count
}

func (r *readers) connect(stalled bool) {
	index := len(r.connections)
	fd := r.dial(stalled)
	c := &connection{fd: fd, topic: index % r.place.Topics, stalled: stalled, rest: make([]byte, 0, 512)}
	if _, err := syscall.Write(fd, r.request(index)); err != nil {
		fail("a request: %v", err)
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		fail("a socket: %v", err)
	}
	r.connections = append(r.connections, c)
	r.opening++
	r.watch(fd)
	byDescriptor = grown(byDescriptor, fd)
	byDescriptor[fd] = c
}

// byDescriptor finds a connection; the kernel numbers sockets from the lowest.
var byDescriptor []*connection

func grown(list []*connection, index int) []*connection {
	for len(list) <= index {
		list = append(list, nil)
	}
	return list
}

func (r *readers) dial(stalled bool) int {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		fail("a socket: %v", err)
	}
	if stalled {
		_ = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUF, stalledBytes)
	}
	// A reset at the end: the ports of so many connections would be held for a minute.
	_ = syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
	address, err := net.ResolveTCPAddr("tcp4", r.place.Address)
	if err != nil {
		fail("the address: %v", err)
	}
	target := &syscall.SockaddrInet4{Port: address.Port}
	copy(target.Addr[:], address.IP.To4())
	if err := syscall.Connect(fd, target); err != nil {
		fail("connecting: %v", err)
	}
	return fd
}

func (r *readers) request(index int) []byte {
	token := ""
	if len(r.place.Tokens) > 0 {
		token = r.place.Tokens[index%len(r.place.Tokens)]
	}
	topic := string(appendInt(nil, index%r.place.Topics))
	return []byte(strings.NewReplacer("TOKEN", token, "TOPIC", topic).Replace(r.place.Request))
}

func appendInt(text []byte, value int) []byte {
	if value >= 10 {
		text = appendInt(text, value/10)
	}
	return append(text, byte('0'+value%10))
}

func (r *readers) watch(fd int) {
	event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd)}
	if err := syscall.EpollCtl(r.epoll, syscall.EPOLL_CTL_ADD, fd, &event); err != nil {
		fail("epoll: %v", err)
	}
}

func (r *readers) close(c *connection) {
	byDescriptor[c.fd] = nil
	_ = syscall.Close(c.fd)
	c.fd = -1
}

func (r *readers) begin(first, count int) {
	r.first, r.count = first, count
	r.taken = Taken{Closed: r.taken.Closed}
	r.firstDue, r.lastArrival = 0, 0
	r.latencies = new(histogram)
	for _, each := range r.connections {
		each.next = 0
		each.seen = make([]uint64, (count+63)/64)
		if !each.stalled {
			// Texts take turns in the topics, and the first of a round is one of the first topic.
			r.taken.Expected += (count - each.topic + r.place.Topics - 1) / r.place.Topics
		}
	}
}

func (r *readers) take(within time.Duration) Taken {
	deadline, quiet, received := time.Now().Add(within), time.Now(), 0
	for r.taken.Received < r.taken.Expected {
		r.turn(20)
		now := time.Now()
		if r.taken.Received > received {
			received, quiet = r.taken.Received, now
		}
		if now.After(deadline) || now.Sub(quiet) > quietSeconds {
			break
		}
	}
	taken := r.taken
	r.count = 0 // what comes later belongs to no round
	taken.Seconds = float64(r.lastArrival-r.firstDue) / 1e9
	taken.P50 = float64(r.latencies.percentile(50)) / 1e3
	taken.P99 = float64(r.latencies.percentile(99)) / 1e3
	taken.Slowest = float64(r.latencies.most) / 1e3
	return taken
}

var events [256]syscall.EpollEvent

// turn reads what is there, after waiting for it so many milliseconds at most.
func (r *readers) turn(milliseconds int) {
	count, err := syscall.EpollWait(r.epoll, events[:], milliseconds)
	if err != nil && !errors.Is(err, syscall.EINTR) {
		fail("epoll: %v", err)
	}
	commanded := false
	for i := 0; i < count; i++ {
		if fd := int(events[i].Fd); fd == 0 {
			commanded = true
		} else if c := byDescriptor[fd]; c != nil {
			r.readFrom(c)
		}
	}
	if commanded && milliseconds < 0 {
		var command Command
		listen(&command)
		answer(r.do(command))
	}
}

func (r *readers) readFrom(c *connection) {
	kept := copy(r.buffer, c.rest)
	n, err := syscall.Read(c.fd, r.buffer[kept:])
	if errors.Is(err, syscall.EAGAIN) {
		return
	}
	if n <= 0 {
		r.taken.Closed++
		if !c.opened {
			r.opening--
		}
		r.close(c)
		return
	}
	data := r.buffer[:kept+n]
	if !c.opened {
		if !bytes.Contains(data, []byte("\r\n\r\n")) {
			c.rest = append(c.rest[:0], data...)
			return
		}
		if !bytes.HasPrefix(data, []byte("HTTP/1.1 200 ")) {
			fail("a reader was answered:\n%s", data)
		}
		c.opened = true
		r.opening--
		if c.stalled {
			event := syscall.EpollEvent{}
			_ = syscall.EpollCtl(r.epoll, syscall.EPOLL_CTL_DEL, c.fd, &event)
		}
	}
	r.taken.Bytes += n
	c.rest = append(c.rest[:0], data[r.scan(c, data, nanos()):]...)
}

// scan counts the texts in `data`; from where the next read goes on.
func (r *readers) scan(c *connection, data []byte, now int64) int {
	for at := 0; ; {
		start, text := at, at
		// LiveKit may join two pieces into one: then a text follows directly behind another.
		if !c.behind || at == len(data) || data[at] < '0' || data[at] > '9' {
			found := r.find(data[at:])
			if found < 0 {
				c.behind = c.behind && at == len(data)
				return max(at, len(data)-len(r.marker)+1)
			}
			start += found
			text = start + len(r.marker)
			if c.behind {
				r.gap = found
			}
		}
		if text+textBytes > len(data) {
			c.behind = c.behind && start == text
			return start
		}
		number, due, ok := readText(data[text:])
		c.behind = ok
		at = text
		if ok {
			r.arrived(c, number, due, now)
			at += textBytes
		}
	}
}

// find is where the next marker is: nearly always as far from the last text as the one before was.
func (r *readers) find(data []byte) int {
	if len(data) >= r.gap && bytes.HasPrefix(data[r.gap:], r.marker) {
		return r.gap
	}
	return bytes.Index(data, r.marker)
}

func (r *readers) arrived(c *connection, number int, due, now int64) {
	index := number - r.first
	if index < 0 || index >= r.count {
		r.taken.Stray++
		return
	}
	bit := uint64(1) << (index & 63)
	if c.seen[index>>6]&bit != 0 {
		r.taken.Doubled++
		return
	}
	c.seen[index>>6] |= bit
	if index < c.next {
		r.taken.Disordered++
	} else {
		c.next = index + 1
	}
	r.taken.Received++
	if r.firstDue == 0 || due < r.firstDue {
		r.firstDue = due
	}
	r.lastArrival = now
	r.latencies.add((now - due) / 1000)
}

// resume opens connections, one after the other, each until its first text; the milliseconds of each,
// in order.
func (r *readers) resume(count int) []float64 {
	waits := make([]float64, 0, count)
	for index := 0; index < count; index++ {
		begun := time.Now()
		stream, err := net.DialTimeout("tcp4", r.place.Address, 5*time.Second)
		if err != nil {
			fail("connecting: %v", err)
		}
		_ = stream.SetDeadline(begun.Add(5 * time.Second))
		if _, err := stream.Write(r.request(index)); err != nil {
			fail("a request: %v", err)
		}
		for read := 0; !bytes.Contains(r.buffer[:read], r.marker); {
			n, err := stream.Read(r.buffer[read:])
			if err != nil {
				fail("no event after a resume: %v\n%s", err, r.buffer[:read])
			}
			read += n
		}
		waits = append(waits, float64(time.Since(begun))/1e6)
		_ = stream.Close()
	}
	return waits
}
