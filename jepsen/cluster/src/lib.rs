//! Starts, stops, kills and restarts real mailboxd processes on one machine.
