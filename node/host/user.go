package host

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
)

// maxAccounts is how much of a container's /etc/passwd or /etc/group is read,
// in bytes. Who has more accounts runs by number.
const maxAccounts = 4 << 20

// maxID is the largest user or group number that a container can have: its
// namespace maps 65 536 of them.
const maxID = idsPerContainer - 1

// account is who a process runs as.
type account struct {
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary, without GID
	Home   string   // never empty
}

// opener opens a file of the container's root. Errors: fs.ErrNotExist.
type opener func(name string) (*os.File, error)

// lookupUser finds who user is in the container whose files open opens: "",
// "uid", "name", and each with ":gid" or ":group" behind it, as in the image
// configuration ("User", image-spec config.md). What is written in digits is a
// number, also if an account has that name. extra are further groups, names or
// numbers.
func lookupUser(open opener, user string, extra []string) (account, error) {
	name, group, grouped := strings.Cut(user, ":")
	if grouped && group == "" || strings.Contains(group, ":") {
		return account{}, invalid("user %q is not of the form user[:group]", user)
	}
	acc := account{Home: "/"}
	want, numeric, err := number(name)
	if err != nil {
		return account{}, invalid("user %q: %v", user, err)
	}
	if name == "" {
		numeric = true
	}
	passwd, found, err := findPasswd(open, name, want, numeric)
	switch {
	case err != nil:
		return account{}, fmt.Errorf("look up user %q: %w", user, err)
	case found:
		acc = passwd.account
	case numeric:
		acc.UID = want
	default:
		return account{}, invalid("unable to find user %s: no matching entries in passwd file", name)
	}
	groups, err := readGroups(open)
	if err != nil {
		return account{}, fmt.Errorf("look up the groups of user %q: %w", user, err)
	}
	if grouped {
		if acc.GID, err = groups.find(group); err != nil {
			return account{}, err
		}
	} else if found {
		acc.Groups = groups.of(passwd.name)
	}
	for _, g := range extra {
		gid, err := groups.find(g)
		if err != nil {
			return account{}, err
		}
		acc.Groups = append(acc.Groups, gid)
	}
	slices.Sort(acc.Groups)
	acc.Groups = slices.DeleteFunc(slices.Compact(acc.Groups), func(g uint32) bool { return g == acc.GID })
	return acc, nil
}

// number reads s as a user or group number. numeric is false if s is a name.
// Digits that make no number are an error: they must never end up as somebody
// else, least of all as 0.
func number(s string) (n uint32, numeric bool, err error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false, nil
	}
	v, err := strconv.ParseUint(s, 10, 32)
	if err != nil || v > maxID {
		return 0, true, fmt.Errorf("%s is not between 0 and %d", s, maxID)
	}
	return uint32(v), true, nil
}

// passwdEntry is a line of /etc/passwd.
type passwdEntry struct {
	name string
	account
}

// findPasswd returns the first entry with that number, or else with that name.
func findPasswd(open opener, name string, uid uint32, numeric bool) (entry passwdEntry, found bool, err error) {
	err = eachLine(open, "etc/passwd", 7, func(f []string) bool {
		u, isUID, uerr := number(f[2])
		g, isGID, gerr := number(f[3])
		if f[0] == "" || !isUID || !isGID || uerr != nil || gerr != nil {
			return true // not an account that can run here
		}
		if numeric && u != uid || !numeric && f[0] != name {
			return true
		}
		entry = passwdEntry{name: f[0], account: account{UID: u, GID: g, Home: "/"}}
		if strings.HasPrefix(f[5], "/") {
			entry.Home = f[5]
		}
		found = true
		return false
	})
	return entry, found, err
}

// groupFile is what /etc/group says.
type groupFile struct {
	ids     map[string]uint32   // by name; the first entry counts
	members map[string][]uint32 // by user
}

func readGroups(open opener) (groupFile, error) {
	g := groupFile{ids: map[string]uint32{}, members: map[string][]uint32{}}
	err := eachLine(open, "etc/group", 4, func(f []string) bool {
		gid, numeric, err := number(f[2])
		if f[0] == "" || !numeric || err != nil {
			return true
		}
		if _, known := g.ids[f[0]]; !known {
			g.ids[f[0]] = gid
		}
		for user := range strings.SplitSeq(f[3], ",") {
			if user != "" {
				g.members[user] = append(g.members[user], gid)
			}
		}
		return true
	})
	return g, err
}

// find returns the number of a group given by name or by number.
func (g groupFile) find(group string) (uint32, error) {
	gid, numeric, err := number(group)
	if err != nil {
		return 0, invalid("group %q: %v", group, err)
	}
	if numeric {
		return gid, nil
	}
	gid, ok := g.ids[group]
	if !ok {
		return 0, invalid("unable to find group %s: no matching entries in group file", group)
	}
	return gid, nil
}

func (g groupFile) of(user string) []uint32 { return slices.Clone(g.members[user]) }

// eachLine calls fn with the colon-separated fields of each line that has at
// least want of them, until fn returns false. A missing file has no lines.
func eachLine(open opener, name string, want int, fn func(fields []string) bool) error {
	f, err := open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, maxAccounts+1))
	lines.Buffer(nil, maxAccounts)
	read := 0
	for lines.Scan() {
		if read += len(lines.Bytes()) + 1; read > maxAccounts {
			return fmt.Errorf("/%s is larger than %d bytes", name, maxAccounts)
		}
		fields := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(fields) < want {
			continue
		}
		if !fn(fields) {
			return nil
		}
	}
	return lines.Err()
}
