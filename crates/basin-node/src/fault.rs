//! Places outside of workflows where tests make the daemon die, as kill -9 would there:
//! `BASIN_FAULT=init/copy/after` in its environment. Never set it on a server that matters.

/// Does nothing unless the environment names this place.
pub fn point(place: &str) {
    if std::env::var_os("BASIN_FAULT").is_some_and(|at| at == place) {
        eprintln!("BASIN_FAULT: the daemon aborts at {place}");
        std::process::abort();
    }
}
