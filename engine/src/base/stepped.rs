//! A file that is written in steps: whoever builds it may rest between them.

use super::{FileWriter, StagedFile};
use crate::error::Error;

/// Rows of one step: some ten microseconds.
const STEP_ROWS: u32 = 16;

/// Writes through, and tells after each step.
pub(crate) struct SteppedWriter<'a> {
    writer: Box<dyn FileWriter + 'a>,
    between: &'a mut dyn FnMut(),
    rows: u32,
}

impl<'a> SteppedWriter<'a> {
    pub(crate) fn new(writer: Box<dyn FileWriter + 'a>, between: &'a mut dyn FnMut()) -> Self {
        Self {
            writer,
            between,
            rows: 0,
        }
    }

    fn count(&mut self) {
        self.rows += 1;
        if self.rows == STEP_ROWS {
            self.rows = 0;
            (self.between)();
        }
    }
}

impl FileWriter for SteppedWriter<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.count();
        self.writer.put(key, value)
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), Error> {
        self.count();
        self.writer.delete(key)
    }

    fn finish(self: Box<Self>) -> Result<StagedFile, Error> {
        self.writer.finish()
    }
}
