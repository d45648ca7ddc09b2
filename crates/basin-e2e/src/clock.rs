//! The wall clock of one server, set apart from the machine's.
//!
//! A time namespace shifts only the monotonic clocks, so this is `libfaketime` loaded
//! into the daemon. Programs that are linked statically, such as etcd, and what runs
//! in guests keep the machine's time; monotonic time stays true everywhere.

use std::fs;
use std::path::PathBuf;

use crate::place::Place;

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

fn file(place: &Place) -> PathBuf {
    place.dir.join("clock")
}

/// What the daemon's environment needs so that its clock can be set.
pub(crate) fn environment(place: &Place) -> Vec<(&'static str, String)> {
    assert!(fs::exists(LIBRARY).unwrap_or(false), "install libfaketime: there is no {LIBRARY}");
    if !file(place).exists() {
        set(place, 0);
    }
    vec![
        ("LD_PRELOAD", LIBRARY.to_owned()),
        ("FAKETIME_TIMESTAMP_FILE", file(place).display().to_string()),
        // Read anew each time, so that the clock can be set while the daemon runs.
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("FAKETIME_DONT_RESET", "1".to_owned()),
    ]
}

/// So many seconds ahead of the machine's clock, or behind it.
pub(crate) fn set(place: &Place, seconds: i64) {
    let new = place.dir.join("clock.new");
    fs::write(&new, format!("{seconds:+}\n")).expect("write the clock's offset");
    fs::rename(new, file(place)).expect("set the clock");
}
