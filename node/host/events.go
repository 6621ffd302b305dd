package host

import (
	"maps"
	"strconv"
	"sync"
	"time"
)

// Event is something that happened to a container or an image.
type Event struct {
	Time       time.Time
	Type       string // container or image
	Action     string // create, start, die …
	ID         string
	Attributes map[string]string
}

// eventsKept is how many past events a late reader can still ask for.
const eventsKept = 256

// eventsWaiting is how far a reader may fall behind before it is cut off:
// nobody waits for a reader.
const eventsWaiting = 1024

// bus hands events to whoever listens.
type bus struct {
	mu        sync.Mutex
	past      []Event
	listeners map[*Subscription]struct{}
}

// Subscription is one reader of the events.
type Subscription struct {
	// Events is closed when the reader was too slow, and by Close.
	Events <-chan Event
	// Past are the events kept from before the subscription, oldest first.
	Past []Event

	bus *bus
	ch  chan Event
}

// Close ends the subscription.
func (s *Subscription) Close() {
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	s.bus.drop(s)
}

// drop is called with mu held.
func (b *bus) drop(s *Subscription) {
	if _, ok := b.listeners[s]; ok {
		delete(b.listeners, s)
		close(s.ch)
	}
}

func (b *bus) subscribe() *Subscription {
	ch := make(chan Event, eventsWaiting)
	s := &Subscription{Events: ch, bus: b, ch: ch}
	b.mu.Lock()
	defer b.mu.Unlock()
	s.Past = append(s.Past, b.past...)
	if b.listeners == nil {
		b.listeners = map[*Subscription]struct{}{}
	}
	b.listeners[s] = struct{}{}
	return s
}

func (b *bus) publish(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.past) == eventsKept {
		b.past = append(b.past[:0:0], b.past[1:]...)
	}
	b.past = append(b.past, e)
	for s := range b.listeners {
		select {
		case s.ch <- e:
		default:
			b.drop(s)
		}
	}
}

// listening returns how many readers there are.
func (b *bus) listening() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.listeners)
}

// Events begins to listen. The caller closes the subscription.
func (h *Host) Events() *Subscription { return h.events.subscribe() }

// Listeners returns how many subscriptions are open.
func (h *Host) Listeners() int { return h.events.listening() }

// tell publishes an event of the container with further attributes, given as
// pairs of name and value.
func (h *Host) tell(c *ctr, action string, more ...string) {
	attrs := map[string]string{}
	maps.Copy(attrs, c.rec.Spec.Labels)
	attrs["image"] = c.rec.Spec.Image
	attrs["name"] = c.name()
	for i := 0; i+1 < len(more); i += 2 {
		attrs[more[i]] = more[i+1]
	}
	h.events.publish(Event{Time: time.Now(), Type: "container", Action: action, ID: c.rec.ID, Attributes: attrs})
}

func exitAttr(code int) []string { return []string{"exitCode", strconv.Itoa(code)} }
