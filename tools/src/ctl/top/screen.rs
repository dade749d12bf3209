//! The terminal: taken for the live view, and given back whatever happens.

use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::text::{Line, Text};
use tokio::sync::mpsc;

/// How soon the thread that waits for keys sees that nobody wants them any more.
const KEY_WAIT: Duration = Duration::from_millis(100);
/// Keys that wait to be done.
const KEYS_QUEUED_MAX: usize = 64;

/// What a person asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Leave,
    Sort,
    Up(usize),
    Down(usize),
    Home,
    Hold,
    Help,
    /// The window has another size, or is to be drawn anew.
    Draw,
}

/// Holds the terminal in raw mode on its other screen. Dropped, or on a panic, it is as it was.
pub(super) struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    /// # Errors
    /// The terminal cannot be switched.
    pub(super) fn take() -> std::io::Result<Self> {
        // Also installs a hook that restores the terminal before a panic is told.
        let terminal = ratatui::try_init()?;
        Ok(Self { terminal })
    }

    pub(super) fn height(&self) -> std::io::Result<u16> {
        Ok(self.terminal.size()?.height)
    }

    pub(super) fn draw(&mut self, lines: Vec<Line<'static>>) -> std::io::Result<()> {
        self.terminal
            .draw(|frame| frame.render_widget(Text::from(lines), frame.area()))
            .map(|_| ())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Keys from a thread of their own, until the receiver is dropped.
pub(super) fn keys() -> mpsc::Receiver<Key> {
    let (keys, inbox) = mpsc::channel(KEYS_QUEUED_MAX);
    std::thread::spawn(move || {
        while !keys.is_closed() {
            match event::poll(KEY_WAIT) {
                Ok(false) => {}
                Ok(true) => {
                    let Ok(event) = event::read() else { return };
                    if let Some(key) = key_of(&event)
                        && keys.blocking_send(key).is_err()
                    {
                        return;
                    }
                }
                // The terminal is gone: the channel's end says so.
                Err(_) => return,
            }
        }
    });
    inbox
}

fn key_of(event: &Event) -> Option<Key> {
    let key = match event {
        Event::Resize(..) | Event::FocusGained => return Some(Key::Draw),
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        _ => return None,
    };
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c' | 'd') if control => Some(Key::Leave),
        KeyCode::Char('l') if control => Some(Key::Draw),
        _ if control => None,
        KeyCode::Char('q') | KeyCode::Esc => Some(Key::Leave),
        KeyCode::Char('s') => Some(Key::Sort),
        KeyCode::Char(' ' | 'p') => Some(Key::Hold),
        KeyCode::Char('?' | 'h') => Some(Key::Help),
        KeyCode::Up | KeyCode::Char('k') => Some(Key::Up(1)),
        KeyCode::Down | KeyCode::Char('j') => Some(Key::Down(1)),
        KeyCode::PageUp => Some(Key::Up(10)),
        KeyCode::PageDown => Some(Key::Down(10)),
        KeyCode::Home => Some(Key::Home),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use ratatui::crossterm::event::KeyEvent;

    use super::*;

    #[test]
    fn ctrl_c_leaves_and_c_does_not() {
        let key = |code, modifiers| key_of(&Event::Key(KeyEvent::new(code, modifiers)));
        assert_eq!(
            key(KeyCode::Char('c'), KeyModifiers::CONTROL),
            Some(Key::Leave)
        );
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), None);
        assert_eq!(
            key(KeyCode::Char('q'), KeyModifiers::NONE),
            Some(Key::Leave)
        );
        assert_eq!(key(KeyCode::Char('s'), KeyModifiers::CONTROL), None);
        assert_eq!(
            key(KeyCode::PageDown, KeyModifiers::NONE),
            Some(Key::Down(10))
        );
        assert_eq!(key_of(&Event::Resize(80, 24)), Some(Key::Draw));
    }
}
