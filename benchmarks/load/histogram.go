package main

import "math/bits"

// histogram counts microseconds, in steps of less than one percent.
type histogram struct {
	counts [128 * 40]int
	total  int
	most   int64
}

func (h *histogram) add(microseconds int64) {
	microseconds = max(microseconds, 0)
	h.counts[bucket(microseconds)]++
	h.total++
	h.most = max(h.most, microseconds)
}

// percentile is the upper end of the step that it falls into.
func (h *histogram) percentile(percent float64) int64 {
	wanted, seen := int(float64(h.total)*percent/100), 0
	for index, count := range h.counts {
		if seen += count; count > 0 && seen >= wanted {
			return min(upper(index), h.most)
		}
	}
	return h.most
}

func bucket(value int64) int {
	if value < 256 {
		return int(value)
	}
	shift := bits.Len64(uint64(value)) - 8
	return shift*128 + int(value>>shift)
}

func upper(index int) int64 {
	if index < 256 {
		return int64(index)
	}
	shift := index/128 - 1
	return int64(index-shift*128+1)<<shift - 1
}
