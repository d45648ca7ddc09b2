//! Names that people give, and labels that policy selects by.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name of a VM, network, image and so on: a DNS label (RFC 1123), since a
/// VM's name is also its host name on its networks. 1 to 63 of `a-z0-9-`,
/// neither first nor last a hyphen, and not something that reads as an id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// A text that is not a name, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a name: {why}; use 1 to 63 of a-z, 0-9 and '-', such as web-1")]
pub struct InvalidName {
    pub text: String,
    pub why: &'static str,
}

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(s: &str) -> Result<Name, InvalidName> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let why = if s.is_empty() {
            "it is empty"
        } else if s.len() > 63 {
            "it is longer than 63"
        } else if s.chars().any(|c| c.is_ascii_uppercase()) {
            "it has a capital letter"
        } else if !s.chars().all(allowed) {
            "it has a character that is not allowed"
        } else if s.starts_with('-') || s.ends_with('-') {
            "it starts or ends with a hyphen"
        } else if uuid::Uuid::parse_str(s).is_ok() {
            "it reads as an id"
        } else {
            return Ok(Name(s.to_owned()));
        };
        Err(InvalidName { text: s.to_owned(), why })
    }
}

impl TryFrom<String> for Name {
    type Error = InvalidName;
    fn try_from(s: String) -> Result<Name, InvalidName> {
        s.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Key-value pairs that selectors match: at most [`Labels::MAX`], keys of 1 to 63
/// characters out of `a-zA-Z0-9._/-`, values of at most 255 printable characters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

/// A set of labels that is refused, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("label '{key}' is refused: {why}")]
pub struct InvalidLabel {
    pub key: String,
    pub why: &'static str,
}

impl Labels {
    pub const MAX: usize = 64;

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = InvalidLabel;

    fn try_from(map: BTreeMap<String, String>) -> Result<Labels, InvalidLabel> {
        let key_char = |c: char| c.is_ascii_alphanumeric() || "._/-".contains(c);
        for (n, (key, value)) in map.iter().enumerate() {
            let why = if n >= Labels::MAX {
                "there are more than 64 labels"
            } else if key.is_empty() || key.len() > 63 {
                "a key has 1 to 63 characters"
            } else if !key.chars().all(key_char) {
                "a key is made of letters, digits, '.', '_', '/' and '-'"
            } else if value.chars().count() > 255 || value.chars().any(char::is_control) {
                "a value has at most 255 characters, none of them a control character"
            } else {
                continue;
            };
            return Err(InvalidLabel { key: key.clone(), why });
        }
        Ok(Labels(map))
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels_and_never_ids() {
        for good in ["a", "web-1", "0day", &"x".repeat(63)] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "Web",
            "a_b",
            "a.b",
            "ü",
            &"x".repeat(64),
            "0190a5f2-7c1e-7d3a-9b1f-2f6f0c9e4d11",
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_are_checked_as_a_whole() {
        let one =
            |k: &str, v: &str| Labels::try_from(BTreeMap::from([(k.to_owned(), v.to_owned())]));
        assert!(one("tier", "gold").is_ok());
        assert!(one("", "x").is_err());
        assert!(one("a b", "x").is_err());
        assert!(one("a", "x\ny").is_err());
        let many = (0..65).map(|i| (format!("k{i}"), String::new())).collect::<BTreeMap<_, _>>();
        assert!(Labels::try_from(many).is_err());
    }
}
