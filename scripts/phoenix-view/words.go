package main

import (
	"fmt"
	"time"
)

// brief is how long something takes of which nobody is told how long.
const brief = 100 * time.Millisecond

// lasted formats how long something took.
func lasted(d time.Duration) string {
	switch d = max(0, d); {
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
}

// clock formats how long something has been going on.
func clock(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%d s", int(max(0, d).Seconds()))
	}
	return lasted(d)
}

// roughly formats a duration by its greatest unit.
func roughly(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", int(d.Hours())/24)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	case d >= 2*time.Minute:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	}
	return fmt.Sprintf("%d s", int(max(0, d).Seconds()))
}

// left formats how long something holds.
func left(until, now time.Time) string {
	if d := until.Sub(now); d >= 0 {
		return roughly(d) + " left"
	}
	return "expired " + roughly(now.Sub(until)) + " ago"
}

// many formats how many there are of something.
func many(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
