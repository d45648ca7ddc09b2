//! Pure. `key=value` arguments.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::Result;

/// What is left of a command's arguments: each is taken once.
#[derive(Debug)]
pub struct Args(BTreeMap<String, String>);

impl Args {
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Args> {
        let mut args = BTreeMap::new();
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                return Err(format!("{word:?} is not of the form key=value"));
            };
            if args.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(format!("{key} is given twice"));
            }
        }
        Ok(Args(args))
    }

    pub fn take<T: FromStr>(&mut self, key: &str) -> Result<Option<T>> {
        match self.0.remove(key) {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(format!("{key}={text} is not understood")),
            },
        }
    }

    pub fn take_or<T: FromStr>(&mut self, key: &str, default: T) -> Result<T> {
        Ok(self.take(key)?.unwrap_or(default))
    }

    pub fn require<T: FromStr>(&mut self, key: &str) -> Result<T> {
        self.take(key)?.ok_or_else(|| format!("{key}=... is missing"))
    }

    /// Refuses what no command asked for: a misspelt argument is never ignored.
    pub fn finish(&self) -> Result<()> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) => Err(format!("no such argument: {key}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> Result<Args> {
        Args::parse(words.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn arguments_are_taken_once_and_leftovers_are_refused() {
        let mut args = args(&["rate=50", "mib=128"]).unwrap();
        assert_eq!(args.take_or("rate", 1u64), Ok(50));
        assert_eq!(args.take_or("rate", 1u64), Ok(1));
        assert_eq!(args.finish(), Err("no such argument: mib".to_owned()));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        assert!(args(&["rate"]).unwrap_err().contains("\"rate\""));
        assert!(args(&["a=1", "a=2"]).unwrap_err().contains("twice"));
        let mut args = args(&["rate=fast"]).unwrap();
        assert_eq!(args.take::<u64>("rate"), Err("rate=fast is not understood".to_owned()));
        assert_eq!(args.require::<u64>("mib"), Err("mib=... is missing".to_owned()));
    }
}
