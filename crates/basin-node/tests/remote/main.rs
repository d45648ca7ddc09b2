//! Servers trust and reach each other: real listeners, real certificates, real TLS.

mod crowd;
mod fake;
mod faults;
mod keep;
mod methods;
mod rotation;
mod streams;
mod support;
mod trust;
