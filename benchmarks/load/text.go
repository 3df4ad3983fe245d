package main

import (
	"encoding/binary"
	"unsafe"
)

// A text is 70 bytes, as `benchmarks/texts.py` writes it: eight digits of a number, a blank, twenty
// digits of the nanoseconds at which it was due, and a blank; the rest is dots.
const (
	textBytes   = 70
	stampOffset = 9
)

func writeText(text []byte, number int, due int64) {
	for i := range text {
		text[i] = '.'
	}
	writeDigits(text[:8], int64(number))
	text[8] = ' '
	writeDigits(text[stampOffset:stampOffset+20], due)
	text[stampOffset+20] = ' '
}

func writeDigits(target []byte, value int64) {
	for i := len(target) - 1; i >= 0; i-- {
		target[i] = byte('0' + value%10)
		value /= 10
	}
}

// readText is false where it is another text than ours.
func readText(text []byte) (number int, due int64, ok bool) {
	if text[8] != ' ' || text[stampOffset+20] != ' ' {
		return 0, 0, false
	}
	stamp := text[stampOffset:]
	number64, ok0 := eightDigits(text)
	// The first four of the twenty are zeros for the next 300 years.
	high, ok1 := eightDigits(stamp[4:])
	low, ok2 := eightDigits(stamp[12:])
	return int(number64), int64(high)*100_000_000 + int64(low), ok0 && ok1 && ok2
}

// eightDigits reads eight at once; three million texts a second leave no time for one after the other.
func eightDigits(digits []byte) (uint64, bool) {
	chunk := binary.LittleEndian.Uint64(digits)
	if (chunk&0xF0F0F0F0F0F0F0F0)|(((chunk+0x0606060606060606)&0xF0F0F0F0F0F0F0F0)>>4) !=
		0x3333333333333333 {
		return 0, false
	}
	chunk = (chunk & 0x0F0F0F0F0F0F0F0F) * 2561 >> 8
	chunk = (chunk & 0x00FF00FF00FF00FF) * 6553601 >> 16
	return (chunk & 0x0000FFFF0000FFFF) * 42949672960001 >> 32, true
}

func pointer[T any](value *T) uintptr { return uintptr(unsafe.Pointer(value)) }
