package main

import "slices"

// marks are those of an entry in bucket b, the newest last, without a request.
func (h *harness) marks(entry string) []mark {
	h.t.Helper()
	var marks []mark
	for key, o := range h.cloud.buckets["b"].objects {
		if m, ok := parseMark(objectInfo{Key: key, Created: o.created}); ok && m.entry == entry {
			marks = append(marks, m)
		}
	}
	slices.SortFunc(marks, mark.newer)
	return marks
}
