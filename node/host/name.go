package host

import (
	"math/rand/v2"
	"strconv"
	"strings"

	"berth.internal/internal/lazyregexp"
)

// nameGrammar is what Docker allows as a container's name.
var nameGrammar = lazyregexp.New(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// maxName is the longest name, in bytes: it must do as a host name's label and
// as a file name.
const maxName = 128

// checkName accepts what Docker accepts, with or without the slash in front.
func checkName(name string) (string, error) {
	name = strings.TrimPrefix(name, "/")
	if !nameGrammar().MatchString(name) || len(name) > maxName {
		return "", invalid("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, up to %d bytes", name, maxName)
	}
	return name, nil
}

var (
	adjectives = strings.Fields(`able airy amber ample apt azure bold brave breezy bright brisk calm candid cheery
		clear clever coastal cool coral crisp daring deft eager early easy fair fast fine fleet fond frank free fresh
		gentle glad golden grand great hardy hearty honest humble jolly keen kind lively lucid lucky mellow merry mild
		neat nimble noble patient placid plucky polite proud quick quiet rapid ready robust rosy salty serene sharp
		silver smooth snug sober solid sound spry steady still stout sunny sure swift tidal tidy trim true vivid warm
		wise witty young zesty`)
	nouns = strings.Fields(`anchor atoll ballast bay beacon bight boom bosun bow breeze bridge brig buoy cable canal cape
		capstan cargo channel chart cliff coast cove creek crest current cutter deck delta dinghy dock dory estuary
		ferry fjord fleet float galley gangway gull gulf harbor hatch haven heron hull inlet island jetty keel ketch
		lagoon lantern lighthouse lock lugger marina mast mole moorage oar pelican pier pilot pontoon port quay raft
		reef rigging river rudder sail sandbar schooner seal shoal shore skiff sloop sound spar spray starboard stern
		strait tern tide tiller trawler tug wake wave wharf winch yawl`)
)

// randomName makes up a name that is not taken: two words, then with a number.
func randomName(taken func(string) bool) string {
	for try := 0; ; try++ {
		name := adjectives[rand.IntN(len(adjectives))] + "_" + nouns[rand.IntN(len(nouns))]
		if try > 3 {
			name += strconv.Itoa(rand.IntN(try * 10))
		}
		if !taken(name) {
			return name
		}
	}
}

func allDigits(s string) bool { return strings.Trim(s, "0123456789") == "" }
