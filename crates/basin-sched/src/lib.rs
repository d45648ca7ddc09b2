//! Pure. Decisions about the whole data centre: `(snapshot) -> plan + reasons` (DESIGN D6).
