package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// Rules of the files (docs/development.md): what they are is told on top, they are short, and no kind of store is known
// outside its own files and the one line in daemon.go.
func TestRooms(t *testing.T) {
	const maxLines, maxColumns, minHeader = 650, 140, 3
	kinds := regexp.MustCompile(`\bstore(S3|Azure)\b`)
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) < 10 {
		t.Fatalf("found %q, %v", files, err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(file, "store") && file != "daemon.go" && kinds.Match(text) {
			t.Errorf("%s knows a kind of store: %s", file, kinds.Find(text))
		}
		lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
		if len(lines) > maxLines {
			t.Errorf("%s has %d lines, at most %d are allowed", file, len(lines), maxLines)
		}
		header, opened := 0, false
		for i, line := range lines {
			if opened = opened || strings.HasPrefix(line, "package "); !opened && strings.HasPrefix(line, "//") {
				header++
			}
			if columns := utf8.RuneCountInString(line); columns > maxColumns {
				t.Errorf("%s:%d has %d columns, at most %d are allowed", file, i+1, columns, maxColumns)
			}
		}
		if header < minHeader {
			t.Errorf("%s does not say on top what it is: %d lines of comment before the package clause", file, header)
		}
	}
}
