package main

import (
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// mutationSeed repeats a run: go test -run=Mutations . -mutation-seed=N
var mutationSeed = flag.Uint64("mutation-seed", 0, "the seed of random mutations; 0 is a new one each time")

func FuzzReview(f *testing.F) {
	w := newTestWebhook(noEntries)
	fuzz(f, reviewSeeds(f), func(t testing.TB, body []byte) { checkReview(t, w, body) })
}

func FuzzParseConfig(f *testing.F) { fuzz(f, parseConfigSeeds(f), checkParseConfig) }

func FuzzParseMark(f *testing.F) { fuzz(f, parseMarkSeeds(f), checkParseMark) }

// What make fuzz does guided by coverage, in a build of its own, is done here at random.

func TestReviewMutations(t *testing.T) {
	t.Parallel()
	w := newTestWebhook(noEntries)
	checkMutations(t, "FuzzReview", reviewSeeds(t), 200, func(t testing.TB, body []byte) { checkReview(t, w, body) })
}

func TestParseConfigMutations(t *testing.T) {
	t.Parallel()
	checkMutations(t, "FuzzParseConfig", parseConfigSeeds(t), 3000, checkParseConfig)
}

func TestParseMarkMutations(t *testing.T) {
	checkMutations(t, "FuzzParseMark", parseMarkSeeds(t), 10000, checkParseMark)
}

// fuzz is a fuzz target for a property that must hold for every input.
func fuzz[T string | []byte](f *testing.F, seeds []string, property func(testing.TB, T)) {
	for _, seed := range seeds {
		f.Add(T(seed))
	}
	f.Fuzz(func(t *testing.T, input T) { property(t, input) })
}

// checkMutations checks the property on each seed of a target, and on n mutations of each. What
// go test has found in testdata/fuzz are seeds too.
func checkMutations[T string | []byte](t *testing.T, target string, seeds []string, n int, property func(testing.TB, T)) {
	seeds = append(slices.Clone(seeds), foundInputs(t, target)...)
	number := *mutationSeed
	if number == 0 {
		number = rand.Uint64()
	}
	t.Logf("%d seeds, -mutation-seed=%d", len(seeds), number)
	m := newMutator(seeds, number)
	for _, seed := range m.seeds {
		for range n {
			input := m.mutate(seed)
			property(t, T(input))
			if t.Failed() {
				// As it can be copied to a seed.
				t.Fatalf("the input was %q", input)
			}
		}
	}
}

// foundInputs reads the files in which go test keeps what failed (go help fuzz).
func foundInputs(t testing.TB, target string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "fuzz", target, "*"))
	if err != nil {
		t.Fatal(err)
	}
	var inputs []string
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		input, err := parseFoundInput(string(content))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		inputs = append(inputs, input)
	}
	return inputs
}

// parseFoundInput reads the only argument, as in []byte("x") and string("x").
func parseFoundInput(content string) (string, error) {
	_, argument, _ := strings.Cut(content, "\n")
	_, argument, _ = strings.Cut(argument, "(")
	return strconv.Unquote(strings.TrimSuffix(strings.TrimSpace(argument), ")"))
}

// mutator makes inputs of others.
type mutator struct {
	random *rand.Rand
	// seeds are in tokens, which is what JSON, and most else, is made of.
	seeds [][]string
	// tokens are those of all seeds, and some that tend to be special.
	tokens []string
}

var inputToken = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|[A-Za-z]+|[0-9]+|[^A-Za-z0-9]`)

func newMutator(seeds []string, number uint64) *mutator {
	m := &mutator{random: rand.New(rand.NewPCG(number, 0)), tokens: []string{
		"", "null", "true", "false", "0", "-1", "1e999", "9223372036854775808", "{}", "[]", `""`, "\"\xff\"", `"\u0000"`, "\x00", "/", "..", "é",
	}}
	for _, seed := range seeds {
		tokens := inputToken.FindAllString(seed, -1)
		m.seeds = append(m.seeds, tokens)
		m.tokens = append(m.tokens, tokens...)
	}
	// What is frequent in the seeds shall not be more likely.
	slices.Sort(m.tokens)
	m.tokens = slices.Compact(m.tokens)
	return m
}

// mutate makes one to four changes, mostly of tokens.
func (m *mutator) mutate(seed []string) string {
	tokens := slices.Clone(seed)
	changes := 1 + m.random.IntN(4)
	for changes > 0 && m.random.IntN(4) > 0 {
		tokens = m.changeTokens(tokens)
		changes--
	}
	input := []byte(strings.Join(tokens, ""))
	for range changes {
		input = m.changeBytes(input)
	}
	return string(input)
}

// span is a random part of a sequence, which may be empty.
func (m *mutator) span(length int) (begin, end int) {
	begin = m.random.IntN(length + 1)
	return begin, begin + m.random.IntN(length-begin+1)
}

func (m *mutator) changeTokens(tokens []string) []string {
	token := m.tokens[m.random.IntN(len(m.tokens))]
	begin, end := m.span(len(tokens))
	if begin == len(tokens) {
		return append(tokens, token)
	}
	switch m.random.IntN(8) {
	case 0: // one more
		return slices.Insert(tokens, begin, token)
	case 1: // a part is gone
		return slices.Delete(tokens, begin, end)
	case 2: // a part is there twice
		return slices.Insert(tokens, end, slices.Clone(tokens[begin:end])...)
	case 3: // the rest is another seed's
		seed := m.seeds[m.random.IntN(len(m.seeds))]
		return append(tokens[:begin], seed[m.random.IntN(len(seed)+1):]...)
	case 4: // one is that of another place
		tokens[begin] = tokens[m.random.IntN(len(tokens))]
	default: // one is another
		tokens[begin] = token
	}
	return tokens
}

func (m *mutator) changeBytes(input []byte) []byte {
	begin, end := m.span(len(input))
	if begin == len(input) {
		return append(input, byte(m.random.IntN(256)))
	}
	switch m.random.IntN(4) {
	case 0:
		return slices.Delete(input, begin, end)
	case 1:
		return slices.Insert(input, begin, byte(m.random.IntN(256)))
	default:
		input[begin] ^= 1 << m.random.IntN(8)
		return input
	}
}

func TestMutator(t *testing.T) {
	mutations := func() (all []string) {
		m := newMutator([]string{"", `{"a":"b","c":12}`}, 1)
		for range 3000 {
			all = append(all, m.mutate(m.seeds[0]), m.mutate(m.seeds[1]))
		}
		return all
	}
	all := mutations()
	if !slices.Equal(all, mutations()) {
		t.Error("the same number does not make the same mutations")
	}
	for _, want := range []string{`{"a":null,"c":12}`, `{"a":"b","a":12}`, `{"a":"b","c":12`, `{"a":"b","b":12}`} {
		if !slices.Contains(all, want) {
			t.Errorf("%q is no mutation", want)
		}
	}
}

func TestParseFoundInput(t *testing.T) {
	for content, want := range map[string]string{
		"go test fuzz v1\n[]byte(\"a\\n(\\\"\\xff\")\n": "a\n(\"\xff",
		"go test fuzz v1\nstring(\"x)\")\n":             "x)",
		"go test fuzz v1\nstring(`y`)":                  "y",
	} {
		if got, err := parseFoundInput(content); err != nil || got != want {
			t.Errorf("%q is read as %q, %v", content, got, err)
		}
	}
}
