package engine

import (
	"cmp"
	"fmt"
	"net/http"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"berth.internal/node/host"
)

// containerTop answers GET /containers/{id}/top: 200. The node has no ps: it
// understands the options of ps that people use, and refuses the others by name.
func (e *Engine) containerTop(w http.ResponseWriter, r *http.Request) error {
	cols, err := psColumns(cmp.Or(r.FormValue("ps_args"), "-ef"))
	if err != nil {
		return err
	}
	list, err := e.host.Top(r.Context(), idOf(r))
	if err != nil {
		return err
	}
	answer := container.TopResponse{Processes: [][]string{}}
	for _, c := range cols {
		answer.Titles = append(answer.Titles, c.title)
	}
	now := time.Now()
	for _, p := range list {
		var row []string
		for _, c := range cols {
			row = append(row, c.show(p, now))
		}
		answer.Processes = append(answer.Processes, row)
	}
	return writeJSON(w, http.StatusOK, answer)
}

// column is a column of ps.
type column struct {
	title string
	show  func(p host.ProcessInfo, now time.Time) string
}

// psColumns reads the arguments of ps.
func psColumns(args string) (cols []column, err error) {
	var names []string
	fields := strings.Fields(args)
	for i := 0; i < len(fields); i++ {
		arg := fields[i]
		if name, ok := strings.CutPrefix(arg, "--"); ok {
			switch name, value, _ := strings.Cut(name, "="); name {
			case "format":
				names = append(names, strings.Split(value, ",")...)
			case "forest", "headers":
				return nil, unsupported("ps option %q is not supported", arg)
			default:
				return nil, unsupported("ps option %q is not supported", arg)
			}
			continue
		}
		letters := strings.TrimPrefix(arg, "-")
		for j, letter := range letters {
			switch letter {
			case 'e', 'A', 'w', 'x', 'H', 'h':
			case 'a':
			case 'f':
				names = append(names, "user", "pid", "ppid", "c", "stime", "tty", "time", "cmd")
			case 'u':
				names = append(names, "user", "pid", "%cpu", "%mem", "vsz", "rss", "tty", "stat", "start", "time", "command")
			case 'l':
				names = append(names, "s", "uid", "pid", "ppid", "c", "ni", "vsz", "tty", "time", "comm")
			case 'o':
				list := letters[j+1:]
				if list == "" {
					if i++; i == len(fields) {
						return nil, invalid("ps option -o needs a list of columns")
					}
					list = fields[i]
				}
				names = append(names, strings.Split(list, ",")...)
			default:
				return nil, unsupported("ps option %q is not supported; there are -e, -f, -l, aux and -o COLUMN,…", arg)
			}
			if letter == 'o' {
				break
			}
		}
	}
	if len(names) == 0 {
		names = []string{"pid", "tty", "time", "comm"}
	}
	for _, name := range names {
		show, ok := shows[name]
		if !ok {
			return nil, unsupported("column %q of ps is not supported", name)
		}
		cols = append(cols, column{titles(name), show})
	}
	return cols, nil
}

// titles is what ps writes above a column.
func titles(name string) string {
	special := map[string]string{
		"user": "USER", "euser": "EUSER", "pcpu": "%CPU", "pmem": "%MEM", "args": "COMMAND", "command": "COMMAND", "comm": "COMMAND", "ucmd": "CMD",
		"cmd": "CMD", "tname": "TTY", "tt": "TT", "start": "START", "lstart": "STARTED", "etime": "ELAPSED", "etimes": "ELAPSED",
		"nlwp": "NLWP", "thcount": "THCNT", "sess": "SESS", "state": "S", "nice": "NI",
	}
	return cmp.Or(special[name], strings.ToUpper(name))
}

// shows are the columns by name.
var shows = func() map[string]func(host.ProcessInfo, time.Time) string {
	number := func(f func(host.ProcessInfo) int) func(host.ProcessInfo, time.Time) string {
		return func(p host.ProcessInfo, _ time.Time) string { return strconv.Itoa(f(p)) }
	}
	text := func(f func(host.ProcessInfo) string) func(host.ProcessInfo, time.Time) string {
		return func(p host.ProcessInfo, _ time.Time) string { return f(p) }
	}
	userName := text(func(p host.ProcessInfo) string { return nameOf(p.UID, false) })
	groupName := text(func(p host.ProcessInfo) string { return nameOf(p.GID, true) })
	percent := func(p host.ProcessInfo, now time.Time) float64 {
		if age := now.Sub(p.Started); age > 0 {
			return 100 * float64(p.CPU) / float64(age)
		}
		return 0
	}
	cpu := func(p host.ProcessInfo, now time.Time) string { return fmt.Sprintf("%.1f", percent(p, now)) }
	mem := text(func(p host.ProcessInfo) string {
		return fmt.Sprintf("%.1f", 100*float64(p.Resident)/float64(totalMemory()))
	})
	started := func(p host.ProcessInfo, now time.Time) string {
		if now.Sub(p.Started) < 24*time.Hour {
			return p.Started.Format("15:04")
		}
		return p.Started.Format("Jan02")
	}
	used := text(func(p host.ProcessInfo) string { return clock(p.CPU, true) })
	args, comm, tty := text(func(p host.ProcessInfo) string { return p.Args }), text(func(p host.ProcessInfo) string { return p.Command }), text(func(p host.ProcessInfo) string { return p.TTY })
	state, nice := text(func(p host.ProcessInfo) string { return p.State }), number(func(p host.ProcessInfo) int { return p.Nice })
	threads, session := number(func(p host.ProcessInfo) int { return p.Threads }), number(func(p host.ProcessInfo) int { return p.SID })
	kilobytes := func(f func(host.ProcessInfo) uint64) func(host.ProcessInfo, time.Time) string {
		return func(p host.ProcessInfo, _ time.Time) string { return strconv.FormatUint(f(p)/1024, 10) }
	}
	return map[string]func(host.ProcessInfo, time.Time) string{
		"pid": number(func(p host.ProcessInfo) int { return p.PID }), "ppid": number(func(p host.ProcessInfo) int { return p.PPID }),
		"pgid": number(func(p host.ProcessInfo) int { return p.PGID }), "sid": session, "sess": session,
		"uid": number(func(p host.ProcessInfo) int { return int(p.UID) }), "gid": number(func(p host.ProcessInfo) int { return int(p.GID) }),
		"user": userName, "euser": userName, "group": groupName,
		"c":    func(p host.ProcessInfo, now time.Time) string { return strconv.Itoa(min(int(percent(p, now)), 99)) },
		"pcpu": cpu, "%cpu": cpu, "pmem": mem, "%mem": mem, "stime": started, "start": started,
		"lstart": func(p host.ProcessInfo, _ time.Time) string { return p.Started.Format(time.ANSIC) },
		"etime":  func(p host.ProcessInfo, now time.Time) string { return clock(now.Sub(p.Started), false) },
		"etimes": func(p host.ProcessInfo, now time.Time) string { return strconv.Itoa(int(now.Sub(p.Started).Seconds())) },
		"time":   used, "cputime": used, "tty": tty, "tt": tty, "tname": tty, "stat": state, "state": state, "s": state,
		"ni": nice, "nice": nice, "nlwp": threads, "thcount": threads,
		"vsz": kilobytes(func(p host.ProcessInfo) uint64 { return p.Virtual }), "rss": kilobytes(func(p host.ProcessInfo) uint64 { return p.Resident }),
		"cmd": args, "args": args, "command": args, "comm": comm, "ucmd": comm,
	}
}()

// clock writes a time as ps does: [DD-]HH:MM:SS, short ones without the hours.
func clock(d time.Duration, hours bool) string {
	s := int(d.Seconds())
	days, h, m := s/86400, s/3600%24, s/60%60
	switch {
	case days > 0:
		return fmt.Sprintf("%d-%02d:%02d:%02d", days, h, m, s%60)
	case h > 0 || hours:
		return fmt.Sprintf("%02d:%02d:%02d", h, m, s%60)
	}
	return fmt.Sprintf("%02d:%02d", m, s%60)
}

// nameOf returns the node's name for a user or group, or the number.
func nameOf(id uint32, group bool) string {
	number := strconv.FormatUint(uint64(id), 10)
	if group {
		if g, err := user.LookupGroupId(number); err == nil {
			return g.Name
		}
		return number
	}
	if u, err := user.LookupId(number); err == nil {
		return u.Username
	}
	return number
}

// totalMemory is what the node has, in bytes.
func totalMemory() uint64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil { // cannot fail
		return 1
	}
	return max(info.Totalram*uint64(info.Unit), 1)
}
