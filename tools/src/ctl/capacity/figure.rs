//! Numbers as people and pocket calculators read them.

use crate::output::grouped;

/// Digits that a figure is shown with: none here is known to more.
const DIGITS: i32 = 6;
/// From here on a number is shown as a power of ten.
const LARGE: f64 = 1e15;

/// As it would be typed: `3472222`, `0.88`, `1.5e17`.
pub(super) fn plain(value: f64) -> String {
    shown(value, false)
}

/// For the eye: `3,472,222`.
pub(super) fn pretty(value: f64) -> String {
    shown(value, true)
}

fn shown(value: f64, group: bool) -> String {
    let size = value.abs();
    if size >= LARGE || (size > 0.0 && size < 1e-6) || !value.is_finite() {
        return format!("{value:e}");
    }
    if value.fract() == 0.0 || size >= 10_f64.powi(DIGITS - 1) {
        let rounded = value.round();
        return match group && rounded >= 0.0 {
            // At most LARGE: exact.
            true => grouped(rounded as u64),
            false => format!("{rounded:.0}"),
        };
    }
    let before_point = size.log10().floor() as i32 + 1;
    let places = usize::try_from(DIGITS - before_point).unwrap_or(0);
    let text = format!("{value:.places$}");
    let text = text.trim_end_matches('0').trim_end_matches('.').to_owned();
    match text.split_once('.') {
        Some((whole, rest)) if group && value >= 0.0 => match whole.parse() {
            Ok(whole) => format!("{}.{rest}", grouped(whole)),
            Err(_) => text,
        },
        _ => text,
    }
}

/// A figure and its unit; shares have none.
pub(super) fn with_unit(value: f64, unit: &str) -> String {
    match unit {
        "" => pretty(value),
        unit => format!("{} {unit}", pretty(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_digits_are_shown_and_whole_numbers_whole() {
        for (value, plainly, prettily) in [
            (0.0, "0", "0"),
            (3.0, "3", "3"),
            (0.88, "0.88", "0.88"),
            (1.0 / 3.0, "0.333333", "0.333333"),
            (1_234.567_89, "1234.57", "1,234.57"),
            (3_472_222.222, "3472222", "3,472,222"),
            (1e11, "100000000000", "100,000,000,000"),
            (1.5e17, "1.5e17", "1.5e17"),
            (-1.5, "-1.5", "-1.5"),
        ] {
            assert_eq!(plain(value), plainly);
            assert_eq!(pretty(value), prettily);
        }
        assert_eq!(with_unit(1_500.0, "nodes"), "1,500 nodes");
        assert_eq!(with_unit(0.5, ""), "0.5");
    }
}
