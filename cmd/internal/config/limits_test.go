package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// small is the shortest container.
const small = `"name":"a","template":"a","memory_mb":16,"cores":1,"storage_pool":"ab","storage_size_gb":1,` +
	network

const network = `"network_config":{"name":"a","bridge":"a","ip":"dhcp"}`

// containers returns a file of n containers, each with the members that more
// returns for its index.
func containers(n int, more func(i int) string) string {
	var b strings.Builder
	b.WriteString(`{"lxc_configs":{`)
	for i := range n {
		if i > 0 {
			b.WriteString(",\n")
		}
		fmt.Fprintf(&b, `"%d":{%s%s}`, 100000+i, small, more(i))
	}
	b.WriteString("}}")
	return b.String()
}

// hostile returns files with n of what there could be too many of.
var hostile = map[string]func(n int) string{
	"features":      func(n int) string { return one(`,"features":[` + numbered(n, `"a%d"`) + `]`) },
	"same features": func(n int) string { return one(`,"features":["a"` + strings.Repeat(`,"a"`, n) + `]`) },
	"dependencies":  func(n int) string { return one(`,"dependencies":[` + numbered(n, `2%05d`) + `]`) },
	"same dependencies": func(n int) string {
		return one(`,"dependencies":[7000` + strings.Repeat(`,7000`, n) + `]`)
	},
	"mount points": func(n int) string {
		return one(`,"mount_points":[` +
			numbered(n, `{"host_path":"/srv/a","container_path":"/%d","owner_uid":1}`) + `]`)
	},
	"empty mount points": func(n int) string { return one(`,"mount_points":[{}` + strings.Repeat(`,{}`, n) + `]`) },
	"volumes": func(n int) string {
		return one(`,"volumes":[` + numbered(n, `{"pool":"ab","size_gb":1,"mount_point":"/%d"}`) + `]`)
	},
	"pct_options": func(n int) string {
		return one(`,"pct_options":["nesting=1"` + strings.Repeat(`,"nesting=1"`, n) + `]`)
	},
	"lxc_options": func(n int) string { return one(`,"lxc_options":[` + numbered(n, `"lxc.net.%d=1"`) + `]`) },
	"capabilities": func(n int) string {
		return one(`,"lxc_options":["lxc.cap.keep=` + strings.Repeat(`a,`, min(n, 30000)) + `a"]`)
	},
	"id_maps": func(n int) string { return one(`,"id_maps":[` + numbered(n, `"u %d 0 1"`) + `]`) },
	"interfaces": func(n int) string {
		return listed(numbered(n, `{"name":"a%d","bridge":"b","ip":"dhcp","trunks":"1-4094"}`))
	},
	"empty interfaces": func(n int) string { return listed(`{}` + strings.Repeat(`,{}`, n)) },
	"trunks": func(n int) string {
		return listed(`{"name":"a","bridge":"b","ip":"dhcp","trunks":[1` + strings.Repeat(`,"1-4094"`, n) + `]}`)
	},
	"nameservers":  func(n int) string { return one(`,"nameservers":[` + numbered(n, `"fd00::%x"`) + `]`) },
	"searchdomain": func(n int) string { return one(`,"searchdomain":[` + numbered(n, `"a%d"`) + `]`) },
	"id_maps as objects": func(n int) string {
		return one(`,"id_maps":[` + numbered(n, `{"type":"both","host_id":%d,"container_id":7}`) + `]`)
	},
	"devices": func(n int) string { return one(`,"devices":[` + numbered(n, `{"path":"/dev/%d"}`) + `]`) },
	"tags":    func(n int) string { return one(`,"tags":[` + numbered(n, `"%d"`) + `]`) },
	"ssh_public_keys": func(n int) string {
		return one(`,"ssh_public_keys":[` + numbered(n, `"ssh-ed25519 AAAA%d"`) + `]`)
	},
	"description_text": func(n int) string { return one(`,"description_text":"` + strings.Repeat(`\n`, n) + `x"`) },
	"rules": func(n int) string {
		return one(`,"firewall":{"rules":[` + numbered(n, `{"type":"in","action":"DROP","comment":"%d"}`) + `]}`)
	},
	"empty rules":      func(n int) string { return one(`,"firewall":{"rules":[{}` + strings.Repeat(`,{}`, n) + `]}`) },
	"health_checks":    func(n int) string { return one(`,"health_checks":[` + numbered(n, `{"script":"a%d"}`) + `]`) },
	"gpu_assignment":   func(n int) string { return one(`,"gpu_assignment":"` + numbered(min(n, 10000), "%d") + `"`) },
	"unknown keys":     func(n int) string { return one(`,` + numbered(n, `"x%d":0`)) },
	"containers":       func(n int) string { return containers(n, func(int) string { return "" }) },
	"empty containers": func(n int) string { return `{"lxc_configs":{` + numbered(n, `"1%05d":{}`) + `}}` },
	"a cycle": func(n int) string {
		return containers(n, func(i int) string { return fmt.Sprintf(`,"dependencies":[%d]`, 100000+(i+1)%n) })
	},
	"cycles": func(n int) string {
		return containers(n, func(i int) string { return fmt.Sprintf(`,"dependencies":[100000,%d]`, 100000+(i+1)%n) })
	},
	"services": func(n int) string {
		return `{"lxc_configs":{},"services":[` + numbered(n, `{"name":"a%d","url":"http://10.0.0.9:80"}`) + `]}`
	},
	"equal services": func(n int) string {
		return `{"lxc_configs":{},"services":[` + numbered(n, `{"name":"a","url":"http://10.0.0.9:1%04d"}`) + `]}`
	},
	"empty services": func(n int) string {
		return `{"lxc_configs":{},"services":[{}` + strings.Repeat(`,{}`, n) + `]}`
	},
	"allow": func(n int) string {
		return `{"lxc_configs":{},"dashboard":{"name":"a","allow":[` + numbered(n, `"fd00::%x"`) + `]}}`
	},
	"keys":    func(n int) string { return `{"lxc_configs":{},` + numbered(n, `"x%d":0`) + `}` },
	"one key": func(n int) string { return `{"lxc_configs":{}` + strings.Repeat(`,"a":1`, n) + `}` },
	"mistakes": func(n int) string {
		return `{"lxc_configs":{"100":{"features":[1` + strings.Repeat(`,1`, n) + `]}}}`
	},
	"newlines":      func(n int) string { return strings.Repeat("\n", n) + `{"lxc_configs":1}` },
	"a long string": func(n int) string { return `{"lxc_configs":{"100":{"name":"` + strings.Repeat("a", n) + `"}}}` },
	"a long key":    func(n int) string { return `{"lxc_configs":{"` + strings.Repeat("a", n) + `":1}}` },
	"a long number": func(n int) string { return `{"lxc_configs":{"100":{"cores":` + strings.Repeat("1", n) + `}}}` },
	"nested": func(n int) string {
		return `{"lxc_configs":{},"x":` + strings.Repeat("[", 90) + `"` + strings.Repeat("a", n) + `"` +
			strings.Repeat("]", 90) + `}`
	},
}

// listed is [one] with a list of interfaces.
func listed(interfaces string) string {
	return strings.Replace(one(`,"network_configs":[`+interfaces+`]`), network, `"vllm":0`, 1)
}

func one(more string) string { return containers(1, func(int) string { return more }) }

// allocated returns how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// Whatever a file holds, what reading it allocates is a small multiple of its
// length and grows no faster, and what it says is short.
func TestHostileFiles(t *testing.T) {
	for name, make := range hostile {
		t.Run(name, func(t *testing.T) {
			const n = 5000
			var sizes [2]uint64
			for i := range sizes {
				text := []byte(make(n << i))
				var err error
				var f *File
				sizes[i] = allocated(func() { f, err = Parse("f.json", text) })
				if limit := uint64(64<<10 + 90*len(text)); sizes[i] > limit {
					t.Errorf("%d bytes allocated for a file of %d", sizes[i], len(text))
				}
				var wrong *Error
				if errors.As(err, &wrong) {
					length := len(wrong.Error())
					if max(len(wrong.Mistakes), len(wrong.Warnings)) > MaxMistakes || length > 1000*MaxMistakes {
						t.Errorf("%d mistakes, %d warnings, %d bytes", len(wrong.Mistakes), len(wrong.Warnings), length)
					}
				} else if len(f.Warnings) > MaxMistakes {
					t.Errorf("%d warnings", len(f.Warnings))
				}
			}
			if sizes[1] > 3*sizes[0]+64<<10 {
				t.Errorf("%d bytes allocated, and %d for a file that is twice as long", sizes[0], sizes[1])
			}
		})
	}
}

// The file of virtual machines is read as the other one is.
func TestHostileVMs(t *testing.T) {
	f := parse(t, strings.Replace(base, "1002", numbered(1000, "1%05d"), 1))
	path := filepath.Join(t.TempDir(), "vms.json")
	for name, vm := range map[string]string{
		"served": `{"vmid":1%05d,"name":"v%[1]d","network_config":{"ip":"fd00::1%[1]d/64"},` +
			`"traefik_service":{"name":"a%[1]d","port":1},"portainer_agent_hostname":"b%[1]d.internal.example"}`,
		"not served": `{"vmid":1%05d,"network_config":{"ip":"dhcp"},"traefik_service":{"name":"a%[1]d","port":1}}`,
		"equal": `{"vmid":200,"network_config":{"ip":"10.0.0.10/24"},"traefik_service":{"name":"ca","port":1},` +
			`"portainer_agent_hostname":"%x.example"}`,
		"empty":  `{"x":%d}`,
		"others": `[%d]`,
	} {
		t.Run(name, func(t *testing.T) {
			const n = 2500
			var sizes [2]uint64
			for i := range sizes {
				text := `{"vms":[` + numbered(n<<i, vm) + `]}`
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				var err error
				sizes[i] = allocated(func() { _, err = LoadVMs(f, path, domain) })
				if limit := uint64(1<<20 + 90*len(text)); sizes[i] > limit {
					t.Errorf("%d bytes allocated for a file of %d", sizes[i], len(text))
				}
				var wrong *Error
				if errors.As(err, &wrong) && (max(len(wrong.Mistakes), len(wrong.Warnings)) > MaxMistakes ||
					len(wrong.Error()) > 1000*MaxMistakes) {
					t.Errorf("%d mistakes, %d warnings", len(wrong.Mistakes), len(wrong.Warnings))
				}
			}
			if sizes[1] > 3*sizes[0]+1<<20 {
				t.Errorf("%d bytes allocated, and %d for a file that is twice as long", sizes[0], sizes[1])
			}
		})
	}
}

// A long list is not looked through for each element.
func TestListSetDoesNotScan(t *testing.T) {
	list := make([]int, 1000)
	for i := range list {
		list[i] = i
	}
	var s listSet[int]
	if !s.has(list, 7) || s.has(list, 1000) || !s.has(list, 1000) {
		t.Error("wrong about a long list")
	}
	list[500] = 2000
	if s.has(list, 2000) {
		t.Error("the list was looked through again")
	}
	var short listSet[int]
	if short.has(list[:3], 4) || !short.has(list[:3], 2) || short.long != nil {
		t.Error("wrong about a short list")
	}
}

func TestFirstMistakesAreShown(t *testing.T) {
	// The relations are found last: that of 100000 is the first mistake of all.
	text := containers(2, func(i int) string {
		if i == 0 {
			return `,"dependencies":[100000],"features":[` + strings.Repeat("1,", 60) + `1]`
		}
		return ""
	})
	got := mistakes(t, text)
	if len(got) != 62 || !strings.Contains(got[0], "cycle: 100000 -> 100000") {
		t.Errorf("%d mistakes, first %s", len(got), got[0])
	}

	text = `{"lxc_configs":{"100":{"features":[` + strings.Repeat("1,\n", 4999) + `1]}}}`
	_, err := Parse("f.json", []byte(text))
	var wrong *Error
	if !errors.As(err, &wrong) || len(wrong.Mistakes) != MaxMistakes || wrong.More != 5000+7-MaxMistakes {
		t.Fatalf("%.1000v", err)
	}
	for i, m := range wrong.Mistakes[7:] {
		if m.Line != i+1 || m.Path != fmt.Sprintf("lxc_configs.100.features.%d", i) {
			t.Fatalf("mistake %d: %v", i, m)
		}
	}
	if !strings.HasSuffix(err.Error(), "\nf.json: and 4907 more") {
		t.Errorf("%s", err.Error()[len(err.Error())-100:])
	}

	f := parse(t, one(`,`+numbered(250, `"x%d":0`)))
	if len(f.Warnings) != MaxMistakes || f.More != 150 || !strings.HasSuffix(f.Warnings[99].Path, ".x99") {
		t.Errorf("%d warnings and %d more", len(f.Warnings), f.More)
	}
}

func TestLongCycle(t *testing.T) {
	got := mistakes(t, hostile["a cycle"](10000))
	want := "cycle: 100000 -> 100001 -> 100002 -> 100003 -> 100004 -> (9990 more) -> " +
		"109995 -> 109996 -> 109997 -> 109998 -> 109999 -> 100000"
	if len(got) != 1 || !strings.HasSuffix(got[0], want) {
		t.Errorf("%.1000q", got)
	}
}

// What an event could not hold is a mistake with its place.
func TestTooLongForAnEvent(t *testing.T) {
	big := fmt.Sprintf(`,"vllm_x":"%s"`, strings.Repeat("x", MaxContainer-4000))
	needed := func(n int) string {
		return containers(n, func(i int) string {
			if i == 0 {
				return big
			}
			return `,"dependencies":[100000]`
		})
	}
	const want = "f.json:1:26: lxc_configs.100000: is "
	parse(t, needed(100))
	if got := mistakes(t, needed(1000)); len(got) != 1 || !strings.Contains(got[0], want) {
		t.Errorf("needed: %.300q", got)
	}
	needs := func(n int) string { return one(big + `,"dependencies":[` + numbered(n, `2%05d`) + `]`) }
	parse(t, needs(100))
	if got := mistakes(t, needs(400)); len(got) != 1 || !strings.Contains(got[0], want) {
		t.Errorf("needs: %.300q", got)
	}
	services := func(n int) string {
		text := containers(n, func(i int) string {
			return fmt.Sprintf(`,"traefik_service":{"name":"a%d","port":1}`, i)
		})
		parts := strings.Split(text, `"dhcp"`)
		for i := range n {
			parts[i] += fmt.Sprintf(`"10.1.%d.%d/8"`, i>>7, i&127+1)
		}
		return strings.Join(parts, "")
	}
	parse(t, services(1000))
	got := mistakes(t, services(3000))
	if len(got) != 1 || !strings.Contains(got[0], ": lxc_configs: the ids and services of 3000 containers take ") {
		t.Errorf("services: %.300q", got)
	}
}

func TestLongValuesAreCut(t *testing.T) {
	for _, text := range []string{
		hostile["a long string"](1 << 20), hostile["a long key"](1 << 20), hostile["a long number"](1 << 19),
		strings.Replace(base, `"Step-CA"`, `"`+strings.Repeat("€", 10000)+`"`, 1),
	} {
		for _, line := range mistakes(t, text) {
			if len(line) > 1500 || strings.ContainsRune(line, '\ufffd') {
				t.Errorf("%d bytes: %.2000q", len(line), line)
			}
		}
	}
}

func TestWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{"/dev/zero", "/dev/null", dir} {
		if _, err := Load(path); err == nil || !strings.HasSuffix(err.Error(), path+": neither a file nor a pipe") {
			t.Errorf("%s: %v", path, err)
		}
	}

	long := filepath.Join(dir, "long")
	if err := os.WriteFile(long, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(long, 1<<40); err != nil {
		t.Fatal(err)
	}
	var err error
	if n := allocated(func() { _, err = Load(long) }); n > MaxFile+1<<20 {
		t.Errorf("%d bytes allocated", n)
	}
	if err == nil || err.Error() != long+":1:1: the file is longer than 64 MiB" {
		t.Errorf("%.200v", err)
	}

	// A pipe that somebody writes, as <(…) of a shell is, and one that nobody does.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() {
		w.WriteString(base)
		w.Close()
	}()
	if _, err := Load(fmt.Sprintf("/dev/fd/%d", r.Fd())); err != nil {
		t.Error(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(fifo); err == nil || !strings.HasSuffix(err.Error(), "the file is empty") {
		t.Errorf("%v", err)
	}
	silent, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	defer func(old time.Duration) { pipePatience = old }(pipePatience)
	pipePatience = 10 * time.Millisecond
	if _, err := Load(fifo); err == nil || !strings.HasSuffix(err.Error(), "the pipe had no end after 10ms") {
		t.Errorf("%v", err)
	}
}

func BenchmarkParse(b *testing.B) {
	for name, make := range hostile {
		text := []byte(make(20000))
		b.Run(strings.ReplaceAll(name, " ", "_"), func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				Parse("f.json", text)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(base))
	f.Add([]byte(`{"lxc_configs": {"100": {"network_config": {"ip": 1, "ip": 2}}}}`))
	f.Add([]byte("{\"lxc_configs\": {}, \"a\": \"\\ud800\"}"))
	f.Add([]byte("\ufeff{}"))
	for _, make := range hostile {
		f.Add([]byte(make(3)))
		f.Add([]byte(make(130)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse("f", data)
		again, errAgain := Parse("f", data)
		if !reflect.DeepEqual(file, again) || !reflect.DeepEqual(err, errAgain) {
			t.Fatal("another time, another result")
		}
		var wrong *Error
		switch {
		case err == nil:
			if !json.Valid(data) {
				t.Fatal("accepted what is not JSON")
			}
			check(t, data, file.Warnings, file.More)
			for id, c := range file.Containers {
				alone, err := ParseContainer(id, []byte(c.Raw))
				if err != nil {
					t.Fatalf("%d by itself: %v", id, err)
				}
				if !reflect.DeepEqual(c, alone) {
					t.Fatalf("%d by itself is another: %+v, %+v", id, c, alone)
				}
			}
			plan := file.Plan("example.org")
			if err := plan.Check(); err != nil {
				t.Fatalf("its plan: %v", err)
			}
		case !errors.As(err, &wrong) || len(wrong.Mistakes) == 0:
			t.Fatalf("no mistakes in %v", err)
		default:
			check(t, data, wrong.Mistakes, wrong.More)
			check(t, data, wrong.Warnings, wrong.MoreWarnings)
		}
	})
}

// check looks at the places of mistakes in data, and at their number.
func check(t *testing.T, data []byte, mistakes []Mistake, more int) {
	t.Helper()
	if len(mistakes) > MaxMistakes || more > 0 && len(mistakes) < MaxMistakes {
		t.Fatalf("%d mistakes and %d more", len(mistakes), more)
	}
	lines := bytes.Split(data, []byte("\n"))
	for i, m := range mistakes {
		if m.Line < 1 || m.Line > len(lines) || m.Col < 1 || m.Col > len(lines[m.Line-1])+1 {
			t.Fatalf("%v is outside of the file", m)
		}
		if i > 0 && (m.Line < mistakes[i-1].Line || m.Line == mistakes[i-1].Line && m.Col < mistakes[i-1].Col) {
			t.Fatal("not by position")
		}
	}
}
