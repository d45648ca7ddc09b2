//! Standard output: tables for people, the API's objects for programs.

use std::io::Write as _;

use clap::ValueEnum;
use serde::Serialize;

use super::error::CliError;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
    Yaml,
}

/// Where answers go.
#[derive(Debug, Clone, Copy)]
pub struct Out {
    format: Format,
}

impl Out {
    pub fn new(format: Format) -> Out {
        Out { format }
    }

    pub fn is_table(&self) -> bool {
        self.format == Format::Table
    }

    /// An object: as it is for programs, as `human` says for people.
    pub fn object<T: Serialize>(
        &self,
        it: &T,
        human: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        match self.format {
            Format::Table => write(human(it).as_bytes()),
            Format::Json | Format::Yaml => self.data(it),
        }
    }

    /// An object as it is; JSON unless YAML was asked for.
    pub fn data<T: Serialize>(&self, it: &T) -> Result<(), CliError> {
        let odd = |e: String| CliError::failed(format!("cannot print the answer: {e}"), "");
        let text = match self.format {
            Format::Yaml => serde_yaml_ng::to_string(it).map_err(|e| odd(e.to_string()))?,
            _ => serde_json::to_string_pretty(it).map_err(|e| odd(e.to_string()))? + "\n",
        };
        write(text.as_bytes())
    }

    /// One of a stream of objects: JSON on a line each, or YAML documents.
    pub fn stream<T: Serialize>(
        &self,
        it: &T,
        human: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        match self.format {
            Format::Json => {
                let text = serde_json::to_string(it)
                    .map_err(|e| CliError::failed(format!("cannot print: {e}"), ""))?;
                line(&text)
            }
            Format::Yaml => {
                line("---")?;
                self.data(it)
            }
            Format::Table => line(&human(it)),
        }
    }
}

pub fn line(text: &str) -> Result<(), CliError> {
    write(format!("{text}\n").as_bytes())
}

/// Writes at once, so that what reads us sees it at once.
pub fn write(bytes: &[u8]) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(CliError::Output)
}
