package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// pattern is one pattern of repository names, without braces.
//
// Of two patterns that match a name, the one with the greater rank is the longer
// match. These count, the first that differs: more letters that stand for
// themselves, slashes aside; fewer **; more slashes; fewer *; fewer ?; fewer
// [classes]. A name without wildcards is thus longer than every other pattern
// that matches it, and ** the shortest there is.
type pattern struct {
	text string // by stem: without its **
	rank uint64
	head uint32 // headOf the names that it matches; zero: these begin with several words
	how  matching
}

// headOf is a hash of the first word of a name, and never zero.
func headOf(name string) uint32 {
	h := uint32(2166136261) // FNV-1a
	for i := 0; i < len(name) && name[i] != '/'; i++ {
		h = (h ^ uint32(name[i])) * 16777619
	}
	return h | 1
}

type matching uint8

const (
	byGlob matching = iota
	byText          // it has no wildcards
	byStem          // such as team/**
	always          // **
)

func (p *pattern) match(repo string) bool {
	switch p.how {
	case always:
		return true
	case byText:
		return repo == p.text
	case byStem:
		return strings.HasPrefix(repo, p.text) || repo == p.text[:len(p.text)-1]
	}
	return matchWords(p.text, repo)
}

// matchWords is for patterns without braces. It tries every word at most as
// often as the name has words.
func matchWords(pattern, name string) bool {
	const none = -1
	px, nx := 0, 0               // of the next words; behind the end: there is none
	retryP, retryN := none, none // behind the last **, and what that may take next
	for nx <= len(name) {
		if px <= len(pattern) {
			p, n := word(pattern, px), word(name, nx)
			if p == "**" {
				px += len(p) + 1
				retryP, retryN = px, nx
				continue
			}
			if matchWord(p, n) {
				px += len(p) + 1
				nx += len(n) + 1
				continue
			}
		}
		if retryP == none {
			return false
		}
		retryN += len(word(name, retryN)) + 1
		px, nx = retryP, retryN
	}
	for px <= len(pattern) && word(pattern, px) == "**" {
		px += len("**") + 1
	}
	return px > len(pattern)
}

// word is that of text which begins at i.
func word(text string, i int) string {
	if end := strings.IndexByte(text[i:], '/'); end >= 0 {
		return text[i : i+end]
	}
	return text[i:]
}

// matchWord compares a word with one of a pattern.
func matchWord(pattern, word string) bool {
	const none = -1
	retryP, retryW := none, none
	for p, w := 0, 0; p < len(pattern) || w < len(word); {
		if p < len(pattern) {
			if pattern[p] == '*' {
				p++
				retryP, retryW = p, w
				continue
			}
			if w < len(word) {
				if ok, n := matchByte(pattern[p:], word[w]); ok {
					p += n
					w++
					continue
				}
			}
		}
		if retryP == none || retryW == len(word) {
			return false
		}
		retryW++
		p, w = retryP, retryW
	}
	return true
}

// matchByte compares c with the beginning of a pattern, and tells how long that
// is. What cannot be read matches nothing.
func matchByte(pattern string, c byte) (bool, int) {
	switch pattern[0] {
	case '?':
		return true, 1
	case '[':
		end := strings.IndexByte(pattern, ']')
		for i := 1; i < end; i++ {
			if i+2 < end && pattern[i+1] == '-' {
				if pattern[i] <= c && c <= pattern[i+2] {
					return true, end + 1
				}
				i += 2
			} else if pattern[i] == c {
				return true, end + 1
			}
		}
		return false, 0
	}
	return pattern[0] == c, 1
}

// CheckTags returns why no tag can match a pattern, if that is so. Patterns of
// tags are those of one word of a repository's name, with capitals.
func CheckTags(text string) error {
	if text == "" {
		return errors.New("a pattern of tags is missing, such as v* or {stable,1.*}; * is all")
	}
	if strings.Contains(text, "/") {
		return fmt.Errorf("%q: no tag has a slash", text)
	}
	_, err := read(text, alphabet{inTag, "no tag has the character %q: tags are in letters, digits and . _ -"})
	return err
}

// CheckPattern returns why no repository can match a pattern, if that is so.
func CheckPattern(text string) error {
	_, err := patterns(text)
	return err
}

// CheckValue returns what is wrong with a pattern of a claim's value.
func CheckValue(text string) error {
	_, err := read(text, alphabet{has: inValue})
	return err
}

// Match tells whether a pattern matches a repository, a tag, or a claim's value. One
// that CheckPattern, CheckTags or CheckValue refuses matches nothing, or less than it
// seems to.
func Match(text, name string) bool {
	if strings.IndexByte(text, '{') < 0 {
		return matchWords(text, name)
	}
	plain, err := spread(text)
	return err == nil && slices.ContainsFunc(plain, func(one string) bool { return matchWords(one, name) })
}

// patterns reads a pattern that may have braces. The errors say why no
// repository can match it.
func patterns(text string) ([]pattern, error) {
	if text == "" {
		return nil, errors.New("a pattern of repository names is missing, such as team/app or team/**; ** is all")
	}
	return read(text, alphabet{inName, "no repository has the character %q in its name: names are in small letters, digits and . _ - /"})
}

// alphabet is what names or values consist of, slashes aside.
type alphabet struct {
	has  func(byte) bool
	lack string // what is said of another character, in the place of %q
}

// read reads a pattern of names or values that are written in letters.
func read(text string, letters alphabet) ([]pattern, error) {
	if len(text) > maxPattern {
		return nil, fmt.Errorf("a pattern has at most %d bytes", maxPattern)
	}
	plain, err := spread(text)
	if err != nil {
		return nil, err
	}
	var all []pattern
	for _, one := range plain {
		p, err := onePattern(one, letters)
		if err != nil {
			if one != text {
				err = fmt.Errorf("%q, of %q: %w", one, text, err)
			} else {
				err = fmt.Errorf("%q: %w", one, err)
			}
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// spread writes out braces: a{b,c} is ab and ac.
func spread(text string) ([]string, error) {
	open := strings.IndexByte(text, '{')
	if open < 0 {
		if strings.IndexByte(text, '}') >= 0 {
			return nil, fmt.Errorf("%q: a } without its {", text)
		}
		return []string{text}, nil
	}
	var options []string
	depth, begin, end := 0, open+1, -1
	for i := open; i < len(text) && end < 0; i++ {
		switch c := text[i]; {
		case c == '{':
			depth++
		case c == '}' && depth > 1:
			depth--
		case c == '}' || c == ',' && depth == 1:
			options = append(options, text[begin:i])
			begin = i + 1
			if c == '}' {
				end = i
			}
		}
	}
	if end < 0 || strings.IndexByte(text[:open], '}') >= 0 {
		return nil, fmt.Errorf("%q: braces that do not match", text)
	}
	var all []string
	for _, option := range options {
		more, err := spread(text[:open] + option + text[end+1:])
		if err != nil {
			return nil, err
		}
		if all = append(all, more...); len(all) > maxSpread {
			return nil, fmt.Errorf("braces that stand for more than %d patterns: write more rules", maxSpread)
		}
	}
	return all, nil
}

// onePattern reads a pattern without braces.
func onePattern(text string, abc alphabet) (pattern, error) {
	p := pattern{text: text}
	legal := abc.has
	var letters, doubles, slashes, stars, marks, classes uint64
	for i, word := range strings.Split(text, "/") {
		if i > 0 {
			slashes++
		}
		switch {
		case word == "" && !legal('/'):
			return p, errors.New("no repository has an empty word between slashes, or a slash at either end")
		case word == "**":
			doubles++
			continue
		case strings.Contains(word, "**"):
			return p, errors.New("** stands alone between slashes; within a word write *")
		}
		for j := 0; j < len(word); j++ {
			switch c := word[j]; {
			case c == '*':
				stars++
			case c == '?':
				marks++
			case c == '[':
				class, _, closed := strings.Cut(word[j+1:], "]")
				if err := checkClass(class, legal); err != nil || !closed {
					return p, fmt.Errorf("[%s is not one of several characters, such as [a-z]", word[j+1:])
				}
				classes++
				j += len(class) + 1
			case legal(c):
				letters++
			default:
				return p, fmt.Errorf(abc.lack, c)
			}
		}
	}
	const most = 255 // of a pattern's bytes
	if first := word(text, 0); !strings.ContainsAny(first, "*?[") {
		p.head = headOf(first)
	}
	p.rank = letters<<40 | (most-doubles)<<32 | slashes<<24 | (most-stars)<<16 | (most-marks)<<8 | (most - classes)
	stem, tree := strings.CutSuffix(text, "**")
	switch {
	case text == "**":
		p.how = always
	case doubles+stars+marks+classes == 0:
		p.how = byText
	case tree && doubles == 1 && stars+marks+classes == 0:
		p.how, p.text = byStem, stem
	}
	return p, nil
}

// checkClass checks what is between [ and ].
func checkClass(class string, legal func(byte) bool) error {
	if class == "" {
		return errors.New("nothing in it")
	}
	for i := 0; i < len(class); i++ {
		if !legal(class[i]) || class[i] == '-' {
			return errors.New("not a character")
		}
		if i+2 < len(class) && class[i+1] == '-' {
			if class[i+2] < class[i] || !legal(class[i+2]) {
				return errors.New("not a range")
			}
			i += 2
		}
	}
	return nil
}

// inName tells whether c is in names of repositories, slashes aside.
func inName(c byte) bool {
	return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-'
}

// inTag tells whether c is in tags.
func inTag(c byte) bool { return inName(c) || 'A' <= c && c <= 'Z' }

// inValue tells whether c is in values of claims, which is everything; a slash is
// between words there, too, but these may be empty.
func inValue(byte) bool { return true }
