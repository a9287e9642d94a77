// Command phoenix-view shows the events of phx to people. It is a plain reader of
// the stream: it knows of phx what docs/events.md says, and changes nothing.
package main

func main() {}
