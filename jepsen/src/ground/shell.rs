//! Programs of the system.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

/// Where programs are looked for: not every root has these on the path.
pub(super) fn path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// Whether a program is there.
pub(super) fn is_there(program: &str) -> bool {
    std::env::split_paths(&path()).any(|dir| dir.join(program).is_file())
}

/// Runs a program to its end; what it wrote to stdout.
///
/// # Errors
/// When it cannot be run or fails, with what it wrote to stderr.
pub(super) fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    feed(program, arguments, "")
}

/// The same with something on stdin.
///
/// # Errors
/// As [`run`].
pub(super) fn feed(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<String> {
    let words = || format!("{program} {}", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {}", words()))?;
    if let Some(mut stdin) = child.stdin.take() {
        let written = stdin.write_all(input.as_bytes());
        // One that reads nothing may have ended already.
        if !input.is_empty() {
            written.with_context(|| format!("write to {}", words()))?;
        }
    }
    let output = child.wait_with_output();
    let output = output.with_context(|| format!("wait for {}", words()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}: {}", words(), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_says_is_told() {
        assert_eq!(run("sh", &["-c", "echo up"]).unwrap(), "up\n");
        assert_eq!(feed("cat", &[], "through").unwrap(), "through");
        let error = run("sh", &["-c", "echo no >&2; exit 3"]).unwrap_err();
        assert!(error.to_string().ends_with("exit status: 3: no"), "{error}");
        assert!(run("no-such-program", &[]).is_err());
        assert!(is_there("sh") && !is_there("no-such-program"));
    }
}
