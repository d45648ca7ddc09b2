//! Pure. Builds QEMU's arguments so that no value can become another option.

use std::fmt::Display;

/// An argument list.
#[derive(Debug, Default)]
pub(super) struct Args(Vec<String>);

impl Args {
    pub(super) fn flag(&mut self, flag: &str) {
        self.0.push(flag.to_owned());
    }

    /// `-flag value`, for values that QEMU takes whole.
    pub(super) fn raw(&mut self, flag: &str, value: impl Display) {
        self.0.push(flag.to_owned());
        self.0.push(value.to_string());
    }

    /// `-flag key=value,...`.
    pub(super) fn opts(&mut self, flag: &str, opts: Opts) {
        self.0.push(flag.to_owned());
        self.0.push(opts.0);
    }

    pub(super) fn device(&mut self, opts: Opts) {
        self.opts("-device", opts);
    }

    /// Hands an open file to QEMU; `/dev/fdset/<fd>` is its name from then on.
    pub(super) fn add_fd(&mut self, fd: i32) -> String {
        self.raw("-add-fd", format!("fd={fd},set={fd}"));
        format!("/dev/fdset/{fd}")
    }

    pub(super) fn into_vec(self) -> Vec<String> {
        self.0
    }
}

/// The `driver,key=value,...` of one option. Commas in values are doubled, which is
/// how QEMU escapes them.
#[derive(Debug)]
pub(super) struct Opts(String);

impl Opts {
    /// Starts with a bare word, such as a device's driver.
    pub(super) fn new(first: impl Display) -> Opts {
        Opts(escape(first))
    }

    pub(super) fn of(key: &str, value: impl Display) -> Opts {
        Opts(format!("{key}={}", escape(value)))
    }

    #[must_use]
    pub(super) fn kv(mut self, key: &str, value: impl Display) -> Opts {
        self.0.push_str(&format!(",{key}={}", escape(value)));
        self
    }

    #[must_use]
    pub(super) fn kv_if(self, condition: bool, key: &str, value: impl Display) -> Opts {
        if condition { self.kv(key, value) } else { self }
    }
}

fn escape(value: impl Display) -> String {
    value.to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_value_stays_in_the_value() {
        let opts = Opts::of("guest", "a,debug-threads=off").kv("debug-threads", "on");
        assert_eq!(opts.0, "guest=a,,debug-threads=off,debug-threads=on");
    }
}
