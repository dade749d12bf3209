//! Formulas as text: what is printed is what is computed.
//!
//! `+ - * / ^`, parentheses, `max`, `min` and `ceil`, numbers and names. Every one can be typed into a pocket
//! calculator; nothing else is needed.

use anyhow::{Context as _, bail};

use super::figure::plain;

/// Looks up what a name stands for.
pub(super) type Names<'a> = &'a dyn Fn(&str) -> Option<f64>;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Token<'a> {
    Number(f64),
    /// Of a number or of a function.
    Name(&'a str),
    Sign(char),
}

/// What a formula comes to.
///
/// # Errors
/// It is not a formula, or has a name that nobody knows.
pub(super) fn evaluate(formula: &str, names: Names<'_>) -> anyhow::Result<f64> {
    let mut parser = Parser {
        tokens: tokens(formula)?,
        next: 0,
        names,
    };
    let value = parser.sum()?;
    match parser.peek() {
        None => Ok(value),
        Some(token) => bail!("`{formula}` goes on with {token:?}"),
    }
}

/// The formula with numbers for its names, as they would be typed.
///
/// # Errors
/// As [`evaluate`].
pub(super) fn with_numbers(formula: &str, names: Names<'_>) -> anyhow::Result<String> {
    let mut text = String::with_capacity(formula.len());
    let mut rest = formula;
    while let Some(token) = rest.chars().next() {
        let (piece, after) = match token {
            c if c.is_ascii_alphabetic() => split_while(rest, is_in_name),
            c if c.is_ascii_digit() => split_while(rest, is_in_number),
            c => rest.split_at(c.len_utf8()),
        };
        match names(piece) {
            Some(value) if token.is_ascii_alphabetic() => text.push_str(&plain(value)),
            _ => text.push_str(piece),
        }
        rest = after;
    }
    Ok(text)
}

fn is_in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn is_in_number(c: char) -> bool {
    c.is_ascii_digit() || c == '.' || c == 'e'
}

fn split_while(text: &str, holds: fn(char) -> bool) -> (&str, &str) {
    let end = text.find(|c| !holds(c)).unwrap_or(text.len());
    text.split_at(end)
}

fn tokens(formula: &str) -> anyhow::Result<Vec<Token<'_>>> {
    let mut tokens = Vec::new();
    let mut rest = formula.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, after) = match first {
            c if c.is_ascii_alphabetic() => {
                let (name, after) = split_while(rest, is_in_name);
                (Token::Name(name), after)
            }
            c if c.is_ascii_digit() => {
                let (number, after) = split_while(rest, is_in_number);
                let number = number
                    .parse()
                    .with_context(|| format!("read the number {number} in `{formula}`"))?;
                (Token::Number(number), after)
            }
            '+' | '-' | '*' | '/' | '^' | '(' | ')' | ',' => {
                (Token::Sign(first), rest.split_at(1).1)
            }
            other => bail!("`{formula}` has a {other:?}"),
        };
        tokens.push(token);
        rest = after.trim_start();
    }
    Ok(tokens)
}

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    next: usize,
    names: Names<'a>,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.next).copied()
    }

    /// Takes the next token if it is this sign.
    fn takes(&mut self, sign: char) -> bool {
        let is_next = self.peek() == Some(Token::Sign(sign));
        self.next += usize::from(is_next);
        is_next
    }

    fn require(&mut self, sign: char) -> anyhow::Result<()> {
        match self.takes(sign) {
            true => Ok(()),
            false => bail!("a formula lacks a {sign:?} before {:?}", self.peek()),
        }
    }

    fn sum(&mut self) -> anyhow::Result<f64> {
        let mut value = self.product()?;
        loop {
            if self.takes('+') {
                value += self.product()?;
            } else if self.takes('-') {
                value -= self.product()?;
            } else {
                return Ok(value);
            }
        }
    }

    fn product(&mut self) -> anyhow::Result<f64> {
        let mut value = self.power()?;
        loop {
            if self.takes('*') {
                value *= self.power()?;
            } else if self.takes('/') {
                value /= self.power()?;
            } else {
                return Ok(value);
            }
        }
    }

    fn power(&mut self) -> anyhow::Result<f64> {
        let base = self.atom()?;
        match self.takes('^') {
            true => Ok(base.powf(self.power()?)),
            false => Ok(base),
        }
    }

    fn atom(&mut self) -> anyhow::Result<f64> {
        let Some(token) = self.peek() else {
            bail!("a formula ends where a number should be");
        };
        self.next += 1;
        match token {
            Token::Number(number) => Ok(number),
            Token::Name(name) if self.takes('(') => self.function(name),
            Token::Name(name) => (self.names)(name)
                .with_context(|| format!("a formula names {name}, which is nothing")),
            Token::Sign('(') => {
                let value = self.sum()?;
                self.require(')')?;
                Ok(value)
            }
            Token::Sign(sign) => bail!("a formula has a {sign:?} where a number should be"),
        }
    }

    fn function(&mut self, name: &str) -> anyhow::Result<f64> {
        let fold: fn(f64, f64) -> f64 = match name {
            "max" => f64::max,
            "min" => f64::min,
            "ceil" => {
                let value = self.sum()?;
                self.require(')')?;
                return Ok(value.ceil());
            }
            other => bail!("a formula names the function {other}, which is none"),
        };
        let mut value = self.sum()?;
        while self.takes(',') {
            value = fold(value, self.sum()?);
        }
        self.require(')')?;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(name: &str) -> Option<f64> {
        match name {
            "a" => Some(2.0),
            "b_c" => Some(0.25),
            _ => None,
        }
    }

    #[test]
    fn the_usual_order_holds() {
        for (formula, value) in [
            ("1 + 2 * 3", 7.0),
            ("(1 + 2) * 3", 9.0),
            ("10 - 3 - 2", 5.0),
            ("16 / 4 / 2", 2.0),
            ("2 * a ^ 3", 16.0),
            ("2 ^ 3 ^ 2", 512.0),
            ("1e6 * b_c", 250_000.0),
            ("max(1, a, b_c)", 2.0),
            ("min(1, a, b_c) * 4", 1.0),
            ("ceil(a + b_c)", 3.0),
            ("ceil(max(a, 7 / 2))", 4.0),
        ] {
            assert_eq!(evaluate(formula, &names).unwrap(), value, "{formula}");
        }
    }

    #[test]
    fn what_is_no_formula_is_refused() {
        for wrong in [
            "", "1 +", "(1", "1 2", "a b_c", "nobody", "sqrt(2)", "max(1", "1 % 2", "1.2.3", "* 2",
        ] {
            assert!(evaluate(wrong, &names).is_err(), "{wrong:?} was taken");
        }
    }

    #[test]
    fn numbers_stand_where_names_stood() {
        assert_eq!(
            with_numbers("ceil(a * 1e6) / max(b_c, 1)", &names).unwrap(),
            "ceil(2 * 1e6) / max(0.25, 1)"
        );
    }
}
