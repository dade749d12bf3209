//! Durations on the command line: `250ms`, `10s`, `5m`, `24h`, `7d`.

use std::time::Duration;

/// Reads a whole number with its unit; a bare number is refused, since nobody can tell its unit.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("`{text}` is not a duration: write a number and ms, s, m, h or d");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(unit_ms)
        .map(Duration::from_millis)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_and_required() {
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse("7d"), Ok(Duration::from_secs(7 * 86_400)));
        for wrong in [
            "10",
            "",
            "s",
            "-1s",
            "1.5s",
            "10 s",
            "99999999999999999999s",
        ] {
            assert!(parse(wrong).is_err(), "{wrong} was taken");
        }
    }
}
