//! A program in a terminal of its own.

#![allow(dead_code, reason = "each test uses its part")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// Longest wait for anything; a good run waits for none of them.
const WITHIN: Duration = Duration::from_secs(50);

/// A process that does not outlive the test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

impl Running {
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < WITHIN, "a process does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A program in a terminal: what it shows, and a keyboard.
pub(crate) struct Terminal {
    pub(crate) program: Running,
    pub(crate) keyboard: File,
    screen: Arc<(Mutex<String>, Condvar)>,
}

impl Terminal {
    pub(crate) fn run(command: Command) -> Self {
        Self::run_sized(command, 80, 24)
    }

    pub(crate) fn run_sized(mut command: Command, columns: u16, rows: u16) -> Self {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let name = ptsname(&keyboard, Vec::new()).unwrap();
        let name = name.to_str().unwrap();
        tcsetwinsize(&keyboard, size(columns, rows)).unwrap();
        let terminal = File::options().read(true).write(true).open(name).unwrap();
        command
            .stdin(terminal.try_clone().unwrap())
            .stdout(terminal.try_clone().unwrap())
            .stderr(terminal);
        let program = Running(command.spawn().unwrap());
        // The command holds the terminal open: without it the reader ends with the program.
        drop(command);
        let keyboard = File::from(keyboard);
        let screen = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let (mut reader, shown) = (keyboard.try_clone().unwrap(), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                shown
                    .0
                    .lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&bytes[..count]));
                shown.1.notify_all();
            }
        });
        Self {
            program,
            keyboard,
            screen,
        }
    }

    pub(crate) fn type_line(&mut self, line: &str) {
        self.press(format!("{line}\n").as_bytes());
    }

    pub(crate) fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
    }

    /// Gives the window another size.
    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        tcsetwinsize(&self.keyboard, size(columns, rows)).unwrap();
    }

    /// Typed lines are edited and echoed, as a shell wants it.
    pub(crate) fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.keyboard).unwrap().local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Everything that was ever shown.
    pub(crate) fn shown(&self) -> String {
        self.screen.0.lock().unwrap().clone()
    }

    pub(crate) fn wait_for(&self, text: &str) {
        let shown = self.screen.0.lock().unwrap();
        let wait = self
            .screen
            .1
            .wait_timeout_while(shown, WITHIN, |shown| !shown.contains(text));
        let (shown, timeout) = wait.unwrap();
        assert!(
            !timeout.timed_out(),
            "`{text}` does not appear; the screen says:\n{shown}"
        );
    }

    pub(crate) fn count(&self, text: &str) -> usize {
        self.screen.0.lock().unwrap().matches(text).count()
    }
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize {
        ws_col: columns,
        ws_row: rows,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
