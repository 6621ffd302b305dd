package bolt

import "os"

// readAhead reads the whole file, in order, so that the kernel has it in memory.
// Opening it looks at almost every page to find the free ones, in the order of
// the tree and one page at a time: from a cold disk that takes ten times longer.
// What cannot be read here, opening will stumble over and tell.
func readAhead(path string) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close()
	for buf := make([]byte, 1<<20); err == nil; {
		_, err = f.Read(buf)
	}
}
