//! What is known of an option: its path, its bounds and what it does.

use super::ByteSize;

/// What values an option may have.
#[derive(Debug, Clone, Copy)]
pub enum Bounds {
    /// A whole number, both ends allowed.
    Number {
        /// Least value.
        min: u64,
        /// Greatest value.
        max: u64,
        /// What is counted.
        unit: &'static str,
    },
    /// A number of bytes, both ends allowed.
    Bytes {
        /// Least value.
        min: ByteSize,
        /// Greatest value.
        max: ByteSize,
    },
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// `true` or `false`.
    Flag,
    /// Free text or a path; the words say what fits.
    Text(&'static str),
    /// `host:port`.
    Address,
}

/// One option.
#[derive(Debug, Clone, Copy)]
pub struct OptionFacts {
    /// `section.option`.
    pub path: &'static str,
    /// What values it may have.
    pub bounds: Bounds,
    /// What it does, for the operator.
    pub doc: &'static str,
}

pub(super) const fn number(
    path: &'static str,
    (min, max): (u64, u64),
    unit: &'static str,
    doc: &'static str,
) -> OptionFacts {
    OptionFacts {
        path,
        bounds: Bounds::Number { min, max, unit },
        doc,
    }
}

pub(super) const fn bytes(
    path: &'static str,
    (min, max): (u64, u64),
    doc: &'static str,
) -> OptionFacts {
    OptionFacts {
        path,
        bounds: Bounds::Bytes {
            min: ByteSize(min),
            max: ByteSize(max),
        },
        doc,
    }
}

pub(super) const fn text(path: &'static str, what: &'static str, doc: &'static str) -> OptionFacts {
    OptionFacts {
        path,
        bounds: Bounds::Text(what),
        doc,
    }
}

pub(super) const fn address(path: &'static str, doc: &'static str) -> OptionFacts {
    OptionFacts {
        path,
        bounds: Bounds::Address,
        doc,
    }
}

pub(super) const fn flag(path: &'static str, doc: &'static str) -> OptionFacts {
    OptionFacts {
        path,
        bounds: Bounds::Flag,
        doc,
    }
}
