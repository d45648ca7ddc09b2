//! The key of one migration's TLS.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const LEN: usize = 32;

/// A fresh secret a migration, known to its two sides. Never shown by `{:?}`.
#[derive(Clone, PartialEq, Eq)]
pub struct MigrationKey([u8; LEN]);

impl MigrationKey {
    pub fn fresh() -> MigrationKey {
        MigrationKey(rand::random())
    }

    /// As QEMU reads it, and as it travels.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for MigrationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MigrationKey(..)")
    }
}

impl FromStr for MigrationKey {
    type Err = String;

    fn from_str(text: &str) -> Result<MigrationKey, String> {
        let wrong = || format!("a migration key is {} hexadecimal digits", 2 * LEN);
        if text.len() != 2 * LEN || !text.is_ascii() {
            return Err(wrong());
        }
        let mut key = [0; LEN];
        for (n, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * n..2 * n + 2], 16).map_err(|_| wrong())?;
        }
        Ok(MigrationKey(key))
    }
}

impl Serialize for MigrationKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.hex())
    }
}

impl<'de> Deserialize<'de> for MigrationKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<MigrationKey, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_travels_and_is_not_shown() {
        let key = MigrationKey::fresh();
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<MigrationKey>(&text).unwrap(), key);
        assert_ne!(MigrationKey::fresh(), key);
        assert!(!format!("{key:?}").contains(&key.hex()[..8]));
        for bad in ["", "ab", &"g".repeat(64), &"é".repeat(32)] {
            assert!(bad.parse::<MigrationKey>().is_err(), "{bad}");
        }
    }
}
