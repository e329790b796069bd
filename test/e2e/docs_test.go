package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bucketwarden/test/env"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// Words that may follow sh in the info string of a code block. A block with none of the
// first two is for another place, such as a real seed: its commands are only looked up.
const (
	// runLocal: run, in order, in the environment of docs/quickstart.md.
	runLocal = "local"
	// runSeed: run against an API server with nothing in it but Gardener's CRDs.
	runSeed = "seed"
	// runBackground: a terminal of its own, until the end.
	runBackground = "background"
	// runFails: it must exit with an error.
	runFails = "fails"
)

// documentTimeout is for one code block, which may compile.
const documentTimeout = 30 * time.Minute

// block is a fenced code block of a page. A block of language text holds what the sh block
// before it prints: every line, "..." standing for anything.
type block struct {
	page     string
	line     int
	language string
	marks    []string
	text     string
}

func (b block) String() string { return fmt.Sprintf("%s:%d", b.page, b.line) }

func (b block) has(mark string) bool { return slices.Contains(b.marks, mark) }

// pages are all Markdown files that operators and developers read, relative to the root of
// the repository.
func pages(t *testing.T) []string {
	t.Helper()
	pages, err := fs.Glob(os.DirFS("../.."), "*.md")
	if err != nil {
		t.Fatal(err)
	}
	docs, err := fs.Glob(os.DirFS("../.."), "docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	return append(pages, docs...)
}

func readPage(t *testing.T, page string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("../..", page))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// splitPage returns the code blocks of a page and its prose, where these are empty lines.
func splitPage(t *testing.T, page string) (blocks []block, prose []string) {
	t.Helper()
	var current *block
	indent := ""
	for i, line := range strings.Split(readPage(t, page), "\n") {
		trimmed := strings.TrimLeft(line, " ")
		switch {
		case current == nil && strings.HasPrefix(trimmed, "```"):
			indent = line[:len(line)-len(trimmed)]
			words := append(strings.Fields(strings.TrimPrefix(trimmed, "```")), "")
			current = &block{page: page, line: i + 1, language: words[0], marks: words[1:]}
			line = ""
		case current != nil && trimmed == "```":
			blocks = append(blocks, *current)
			current = nil
			line = ""
		case current != nil:
			current.text += strings.TrimPrefix(line, indent) + "\n"
			line = ""
		}
		prose = append(prose, line)
	}
	if current != nil {
		t.Fatalf("%s: the block is not closed", current)
	}
	return blocks, prose
}

// documented are the sh blocks of all pages, each with the text block that follows it.
func documented(t *testing.T, mark string, pages ...string) (found []documentedBlock) {
	t.Helper()
	for _, page := range pages {
		blocks, _ := splitPage(t, page)
		for i, b := range blocks {
			if b.language != "sh" || !b.has(mark) {
				continue
			}
			d := documentedBlock{block: b}
			if i+1 < len(blocks) && blocks[i+1].language == "text" {
				d.output = blocks[i+1].text
			}
			found = append(found, d)
		}
	}
	return found
}

type documentedBlock struct {
	block
	output string
}

// checkOutput says which of the documented lines are not in the output.
func (b documentedBlock) checkOutput(output string) error {
	squeeze := func(line string) string { return strings.Join(strings.Fields(line), " ") }
	var lines []string
	for line := range strings.Lines(output) {
		lines = append(lines, squeeze(line))
	}
	for line := range strings.Lines(b.output) {
		var parts []string
		for part := range strings.SplitSeq(squeeze(line), "...") {
			parts = append(parts, regexp.QuoteMeta(part))
		}
		expression := regexp.MustCompile("^" + strings.Join(parts, ".*") + "$")
		if !slices.ContainsFunc(lines, expression.MatchString) {
			return fmt.Errorf("%s: the output lacks the line %q", b, squeeze(line))
		}
	}
	return nil
}

// workspace is a copy of the repository in which a new user reads the pages.
type workspace struct {
	root, repository, state string
	env                     []string
}

// newWorkspace copies the repository. Everything that the commands write lies below one
// directory; what takes minutes to build is taken from the cache.
func newWorkspace(t *testing.T) *workspace {
	t.Helper()
	local, err := env.EnsureLocal(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	w := &workspace{root: root, repository: filepath.Join(root, "repository"), state: filepath.Join(root, "state")}
	home, tmp := filepath.Join(root, "home"), filepath.Join(root, "tmp")
	cache := filepath.Join(home, ".cache", "bucketwarden")
	for _, dir := range []string{cache, tmp} {
		must(t, os.MkdirAll(dir, 0o755))
	}
	for _, path := range []string{local.Testkube, local.MinIO, filepath.Dir(local.Kubectl)} {
		must(t, os.Symlink(path, filepath.Join(cache, filepath.Base(path))))
	}
	must(t, copyRepository(w.repository))
	goEnv := exec.CommandContext(t.Context(), "go", "env", "-json", "GOENV", "GOPATH", "GOMODCACHE", "GOCACHE")
	output, err := goEnv.Output()
	must(t, err)
	var goVariables map[string]string
	must(t, json.Unmarshal(output, &goVariables))
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if !slices.Contains([]string{"BUCKETWARDEN_CACHE", "XDG_CACHE_HOME", "KUBECONFIG", "MAKEFLAGS", "MAKELEVEL", "PWD"}, name) {
			w.env = append(w.env, variable)
		}
	}
	for name, value := range goVariables {
		w.env = append(w.env, name+"="+value)
	}
	w.env = append(w.env, "HOME="+home, "TMPDIR="+tmp)
	return w
}

func copyRepository(to string) error {
	const from = "../.."
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch {
		case relative == ".git" && entry.IsDir():
			return fs.SkipDir
		case entry.IsDir():
			return os.MkdirAll(filepath.Join(to, relative), 0o755)
		case !entry.Type().IsRegular() || slices.Contains([]string{"bucketwarden", "bucketwarden-image.tar"}, relative):
			return nil
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, relative), data, info.Mode())
	})
}

// command is bash with arguments, in the repository, with a process group as from a terminal.
func (w *workspace) command(ctx context.Context, args ...string) *exec.Cmd {
	// Were this process killed, the commands would not run for ever.
	cmd := exec.CommandContext(ctx, "timeout", append([]string{"30m", "bash", "-euo", "pipefail", "-c"}, args...)...)
	cmd.Dir, cmd.Env = w.repository, w.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = timeout
	return cmd
}

// terminal is a script as somebody types it into the one terminal that is not in the
// background: what it exports and defines is there for the next one.
func (w *workspace) terminal(ctx context.Context, script string) *exec.Cmd {
	const wrapper = `if [ -e "$0" ]; then . "$0"; fi; trap 'export -p > "$0"; declare -f >> "$0"' EXIT; eval "$1"`
	return w.command(ctx, wrapper, w.state, script)
}

// run runs a block and compares what it prints.
func (w *workspace) run(t *testing.T, b documentedBlock) {
	t.Helper()
	t.Logf("%s\n%s", b, b.text)
	ctx, cancel := context.WithTimeoutCause(t.Context(), documentTimeout, errors.New("it takes too long"))
	defer cancel()
	output, err := w.terminal(ctx, b.text).CombinedOutput()
	t.Logf("%s", output)
	var exit *exec.ExitError
	switch failed := errors.As(err, &exit); {
	case err != nil && !failed:
		t.Fatalf("%s: %v", b, err)
	case failed != b.has(runFails):
		t.Fatalf("%s: ended with %v, should fail: %t, context: %v", b, err, b.has(runFails), context.Cause(ctx))
	}
	if err := b.checkOutput(string(output)); err != nil {
		t.Fatal(err)
	}
}

// background is a block in a terminal of its own.
type background struct {
	block documentedBlock
	cmd   *exec.Cmd
	done  chan struct{}
	mu    sync.Mutex
	log   bytes.Buffer
}

func (b *background) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.log.Write(p)
}

func (b *background) output() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.log.String()
}

// start starts a block and waits until it has printed what is documented.
func (w *workspace) start(t *testing.T, d documentedBlock) *background {
	t.Helper()
	t.Logf("%s\n%s", d, d.text)
	b := &background{block: d, done: make(chan struct{})}
	b.cmd = w.command(context.WithoutCancel(t.Context()), d.text)
	b.cmd.Stdout, b.cmd.Stderr = b, b
	must(t, b.cmd.Start())
	go func() {
		_ = b.cmd.Wait()
		close(b.done)
	}()
	t.Cleanup(func() {
		_ = b.cmd.Cancel()
		<-b.done
		if t.Failed() {
			t.Logf("%s:\n%s", d, b.output())
		}
	})
	err := env.Eventually(t.Context(), documentTimeout, d.String()+" is ready", func(context.Context) error {
		select {
		case <-b.done:
			t.Fatalf("%s: ended: %s", d, b.output())
		default:
		}
		return d.checkOutput(b.output())
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// interrupt is Ctrl-C.
func (b *background) interrupt(t *testing.T) {
	t.Helper()
	must(t, syscall.Kill(-b.cmd.Process.Pid, syscall.SIGINT))
	select {
	case <-b.done:
	case <-time.After(timeout):
		t.Fatalf("%s does not end", b.block)
	}
}

// checkNothingLeft fails if anything that was started still runs or has left data.
func (w *workspace) checkNothingLeft(t *testing.T) {
	t.Helper()
	eventually(t, "all processes are gone", func(context.Context) error {
		directories, err := filepath.Glob("/proc/[0-9]*")
		if err != nil {
			return err
		}
		for _, directory := range directories {
			// A process that ends meanwhile cannot be read.
			commandLine, _ := os.ReadFile(filepath.Join(directory, "cmdline"))
			working, _ := os.Readlink(filepath.Join(directory, "cwd"))
			if bytes.Contains(commandLine, []byte(w.root)) || strings.HasPrefix(working, w.root) {
				return fmt.Errorf("%s runs %q in %s", filepath.Base(directory), bytes.ReplaceAll(commandLine, []byte{0}, []byte{' '}), working)
			}
		}
		return nil
	})
	left, err := filepath.Glob(filepath.Join(w.root, "tmp", "bucketwarden-*"))
	must(t, err)
	if _, err := os.Stat(filepath.Join(w.root, "home", ".cache", "bucketwarden", "local", "env")); err == nil {
		left = append(left, "the environment file")
	}
	if len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// environment reads a variable that the environment file of make local sets.
func (w *workspace) environment(t *testing.T, name string) string {
	t.Helper()
	output, err := w.terminal(t.Context(), `printf %s "$`+name+`"`).Output()
	must(t, err)
	return string(output)
}

const quickstart = "docs/quickstart.md"

// TestQuickstart does what docs/quickstart.md says, and then all that the other pages say
// can be done in the same environment.
func TestQuickstart(t *testing.T) {
	t.Parallel()
	w := newWorkspace(t)
	var terminals []*background
	for _, b := range documented(t, runLocal, quickstart) {
		if b.has(runBackground) {
			terminals = append(terminals, w.start(t, b))
			continue
		}
		w.run(t, b)
	}
	if len(terminals) == 0 {
		t.Fatal("the page starts nothing")
	}

	client := s3.New(s3.Options{BaseEndpoint: aws.String(w.environment(t, "S3_ENDPOINT")), Region: "us-east-1", UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(w.environment(t, "S3_ACCESS_KEY_ID"), w.environment(t, "S3_SECRET_ACCESS_KEY"), "")})
	listed, err := client.ListBuckets(t.Context(), &s3.ListBucketsInput{})
	must(t, err)
	if len(listed.Buckets) != 1 {
		t.Fatalf("the store has %d buckets", len(listed.Buckets))
	}
	lock, err := client.GetObjectLockConfiguration(t.Context(), &s3.GetObjectLockConfigurationInput{Bucket: listed.Buckets[0].Name})
	must(t, err)
	if rule := lock.ObjectLockConfiguration.Rule; rule == nil || rule.DefaultRetention.Mode != types.ObjectLockRetentionModeCompliance || aws.ToInt32(rule.DefaultRetention.Days) != 4 {
		t.Errorf("the bucket is not locked: %+v", lock.ObjectLockConfiguration)
	}

	placeholders := strings.NewReplacer("BUCKET", "seed-minio-backups", "NAMESPACE", "bucketwarden",
		"ENTRY", "shoot--project--minio--0d4ac9a3-55be-4f53-8a8e-0ab9a6bb1d9f",
		// There are neither pods nor leader election.
		"kubectl -n NAMESPACE port-forward", "# ", "kubectl -n NAMESPACE get lease bucketwarden", "")
	// Its blocks have no mark, which is empty.
	for _, b := range documented(t, "", "docs/alerts.md") {
		b.text = placeholders.Replace(b.text)
		w.run(t, b)
	}
	others := slices.DeleteFunc(pages(t), func(page string) bool { return page == quickstart })
	for _, b := range documented(t, runLocal, others...) {
		w.run(t, b)
	}
	for _, terminal := range slices.Backward(terminals) {
		terminal.interrupt(t)
	}
	w.checkNothingLeft(t)
}

// TestDocumentedSeedCommands runs what the pages say for a real seed on an API server
// without nodes.
func TestDocumentedSeedCommands(t *testing.T) {
	t.Parallel()
	w := newWorkspace(t)
	local, err := env.EnsureLocal(t.Context(), os.Stderr)
	must(t, err)
	seed, err := env.StartKube(t.Context(), local.Testkube)
	must(t, err)
	t.Cleanup(seed.Stop)
	helm, err := env.EnsureHelm(t.Context(), os.Stderr)
	must(t, err)
	bin := filepath.Join(w.root, "bin")
	must(t, os.Mkdir(bin, 0o755))
	must(t, os.Symlink(helm.Binary(), filepath.Join(bin, "helm")))
	w.env = append(w.env, "KUBECONFIG="+seed.Kubeconfig, "PATH="+bin+":"+filepath.Dir(local.Kubectl)+":"+os.Getenv("PATH"))
	found := documented(t, runSeed, pages(t)...)
	if len(found) == 0 {
		t.Fatal("no page has any")
	}
	for _, b := range found {
		w.run(t, b)
	}
}

// commandLine matches prose that should be in a block that a test sees.
var commandLine = regexp.MustCompile(`^(    |\t)+(kubectl|make|helm|go|cd|curl|buildah|export|\./bucketwarden) `)

// TestDocumentedCommandsExist looks up the commands that no test can run where they belong.
func TestDocumentedCommandsExist(t *testing.T) {
	t.Parallel()
	local, err := env.EnsureLocal(t.Context(), os.Stderr)
	must(t, err)
	helm := ensureHelm(t)
	help := func(t *testing.T, command ...string) string {
		t.Helper()
		output, err := exec.CommandContext(t.Context(), command[0], append(command[1:], "--help")...).CombinedOutput()
		if err != nil {
			t.Errorf("%q: %v\n%s", command, err, output)
		}
		return string(output)
	}
	for _, page := range pages(t) {
		blocks, prose := splitPage(t, page)
		for i, line := range prose {
			if commandLine.MatchString(line) {
				t.Errorf("%s:%d: put this command into a sh block: %s", page, i+1, line)
			}
		}
		for _, b := range blocks {
			switch {
			case slices.Contains([]string{"bash", "shell", "console", ""}, b.language):
				t.Errorf("%s: use sh, text or the language that it is", b)
			case b.language != "sh" || b.has(runLocal) || b.has(runSeed):
				continue
			}
			for line := range strings.Lines(strings.ReplaceAll(b.text, "\\\n", " ")) {
				code, _, _ := strings.Cut(line, " #")
				words := strings.Fields(code)
				if len(words) == 0 {
					continue
				}
				for len(words) > 1 && strings.Contains(words[0], "=") {
					words = words[1:]
				}
				known := ""
				switch words[0] {
				case "cd", "go":
					continue
				case "make":
					for _, target := range words[1:] {
						if output, err := makeDry(t, target); err != nil {
							t.Errorf("%s: make %s: %v\n%s", b, target, err, output)
						}
					}
					continue
				case "./bucketwarden":
					known = help(t, binaries.Daemon)
					if len(words) > 1 && !strings.HasPrefix(words[1], "-") {
						output, err := exec.CommandContext(t.Context(), binaries.Daemon, "help", words[1]).CombinedOutput()
						if known = string(output); words[1] != "help" && err != nil {
							t.Errorf("%s: %v\n%s", b, err, output)
						}
					}
				case "kubectl":
					if i := slices.Index(words, "-n"); i > 0 {
						words = slices.Delete(words, i, i+2)
					}
					options, err := exec.CommandContext(t.Context(), local.Kubectl, "options").Output()
					must(t, err)
					known = help(t, local.Kubectl, words[1]) + string(options)
				case "helm":
					known = help(t, helm.Binary(), words[1])
				case "buildah":
					if _, err := exec.LookPath("buildah"); err != nil {
						continue
					}
					known = help(t, "buildah", words[1])
				default:
					t.Errorf("%s: no test knows %q", b, words[0])
					continue
				}
				for _, word := range words[1:] {
					if flag, _, _ := strings.Cut(word, "="); strings.HasPrefix(flag, "--") && !strings.Contains(known, strings.TrimLeft(flag, "-")) {
						t.Errorf("%s: %s has no flag %s", b, words[0], flag)
					}
				}
			}
		}
	}
}

func makeDry(t *testing.T, target string) (string, error) {
	t.Helper()
	if strings.Contains(target, "=") {
		return "", nil
	}
	cmd := exec.CommandContext(t.Context(), "make", "-n", target)
	cmd.Dir = "../.."
	output, err := cmd.CombinedOutput()
	return string(output), err
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`^#+ +(.*)$`)
)

// anchors are the names that GitHub gives the headings of a page.
func anchors(t *testing.T, page string) []string {
	t.Helper()
	var found []string
	_, prose := splitPage(t, page)
	for _, line := range prose {
		match := heading.FindStringSubmatch(line)
		if match == nil {
			continue
		}
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
				return r
			default:
				return -1
			}
		}, strings.ToLower(match[1]))
		found = append(found, name)
	}
	return found
}

func TestDocumentLinks(t *testing.T) {
	t.Parallel()
	for _, page := range pages(t) {
		_, prose := splitPage(t, page)
		for i, line := range prose {
			for _, match := range link.FindAllStringSubmatch(line, -1) {
				target := match[1]
				if strings.Contains(target, "://") {
					continue
				}
				path, anchor, _ := strings.Cut(target, "#")
				to := page
				if path != "" {
					to = filepath.Join(filepath.Dir(page), path)
				}
				if _, err := os.Stat(filepath.Join("../..", to)); err != nil {
					t.Errorf("%s:%d: %s: %v", page, i+1, target, err)
					continue
				}
				if anchor != "" && !slices.Contains(anchors(t, to), anchor) {
					t.Errorf("%s:%d: %s has no heading #%s", page, i+1, to, anchor)
				}
			}
		}
	}
}

// TestDocumentedFlags compares the tables of flags with what the daemon knows.
func TestDocumentedFlags(t *testing.T) {
	t.Parallel()
	help, err := exec.CommandContext(t.Context(), binaries.Daemon, "--help").Output()
	must(t, err)
	var known []string
	for _, match := range regexp.MustCompile(`(?m)^  -([a-z-]+)`).FindAllStringSubmatch(string(help), -1) {
		known = append(known, match[1])
	}
	if len(known) < 10 {
		t.Fatalf("the help has the flags %q", known)
	}
	for _, page := range []string{"README.md", "docs/configuration.md"} {
		var documented []string
		for _, match := range regexp.MustCompile("(?m)^\\| `--?([a-z-]+)").FindAllStringSubmatch(readPage(t, page), -1) {
			documented = append(documented, match[1])
		}
		for _, flag := range known {
			if !slices.Contains(documented, flag) {
				t.Errorf("%s lacks the flag %s", page, flag)
			}
		}
		for _, flag := range documented {
			if !slices.Contains(known, flag) {
				t.Errorf("%s has the flag %s, which does not exist", page, flag)
			}
		}
	}
}

// messages are all string literals of the daemon, joined if they are concatenated, with
// "..." in place of what they are formatted with.
func messages(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../../*.go")
	must(t, err)
	var literal func(ast.Node) (string, bool)
	literal = func(node ast.Node) (string, bool) {
		switch node := node.(type) {
		case *ast.BasicLit:
			text, err := strconv.Unquote(node.Value)
			return text, node.Kind == token.STRING && err == nil
		case *ast.BinaryExpr:
			left, leftOK := literal(node.X)
			right, rightOK := literal(node.Y)
			return left + right, leftOK && rightOK
		}
		return "", false
	}
	verb := regexp.MustCompile(`%[#+]?\.?[0-9]*[a-z]`)
	var found []string
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		must(t, err)
		ast.Inspect(parsed, func(node ast.Node) bool {
			if text, ok := literal(node); ok {
				found = append(found, verb.ReplaceAllString(text, "..."))
				return false
			}
			return true
		})
	}
	return found
}

// TestDocumentedMessages looks in the code for what the pages quote: messages in columns of
// that name, reasons of events in columns named event.
func TestDocumentedMessages(t *testing.T) {
	t.Parallel()
	known := messages(t)
	quoted := regexp.MustCompile("`([^`]+)`")
	checked := 0
	for _, page := range pages(t) {
		_, prose := splitPage(t, page)
		column := ""
		for i, line := range prose {
			cells := strings.Split(line, "|")
			switch {
			case len(cells) < 3 || cells[0] != "":
				column = ""
				continue
			case column == "":
				column = strings.TrimSpace(cells[1])
				continue
			case column != "message" && column != "event":
				continue
			}
			for _, match := range quoted.FindAllStringSubmatch(cells[1], -1) {
				checked++
				if !slices.ContainsFunc(known, func(message string) bool {
					if column == "event" {
						return message == match[1]
					}
					rest, found := message, true
					for part := range strings.SplitSeq(match[1], "...") {
						if _, rest, found = strings.Cut(rest, part); !found {
							return false
						}
					}
					return true
				}) {
					t.Errorf("%s:%d: the code has no %s %q", page, i+1, column, match[1])
				}
			}
		}
	}
	if checked < 50 {
		t.Errorf("only %d messages were found in the pages", checked)
	}
}

// TestDocumentedRules compares the rules in docs/operations.md with those of the chart.
func TestDocumentedRules(t *testing.T) {
	t.Parallel()
	helm, err := env.EnsureHelm(t.Context(), os.Stderr)
	must(t, err)
	rendered, err := helm.Template(t.Context(), "bucketwarden", "leaderElection.enabled=true")
	must(t, err)
	roles := map[string][]rbacv1.PolicyRule{}
	for document := range strings.SplitSeq(string(rendered), "\n---\n") {
		var role rbacv1.ClusterRole
		must(t, yaml.Unmarshal([]byte(document), &role))
		roles[role.Kind] = role.Rules
	}
	sorted := func(rules []rbacv1.PolicyRule) string {
		var lines []string
		for _, rule := range rules {
			for _, list := range [][]string{rule.Resources, rule.ResourceNames, rule.Verbs} {
				slices.Sort(list)
			}
			lines = append(lines, rule.String())
		}
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	cluster, own := documentedRules(t)
	mustEqual(t, "the rules of the ClusterRole", sorted(cluster), sorted(roles["ClusterRole"]))
	mustEqual(t, "the rules of the Role", sorted(own), sorted(roles["Role"]))
}
