//! What every command works with: the client and the output.

use std::collections::BTreeMap;
use std::path::Path;

use basin_api::client::{Client, Readable, Resource, Settings};
use basin_api::reference::List;

use super::error::CliError;
use super::out::Out;
use super::table::table;
use super::view::View;

pub struct Session {
    pub client: Client,
    pub out: Out,
    now: jiff::Timestamp,
}

impl Session {
    pub fn new(settings: &Settings, out: Out) -> Result<Session, CliError> {
        Ok(Session { client: Client::new(settings)?, out, now: jiff::Timestamp::now() })
    }

    /// Lists all of a kind, or those with the labels.
    pub async fn list<R: View>(&self, labels: &BTreeMap<String, String>) -> Result<(), CliError> {
        self.print_list(&self.client.list_where::<R>(labels).await?)
    }

    pub fn print_list<R: View>(&self, list: &List<R>) -> Result<(), CliError> {
        if self.out.is_table() && list.items.is_empty() {
            eprintln!("no {}", R::PATH);
            return Ok(());
        }
        self.out.object(list, |list| {
            let rows: Vec<_> = list.items.iter().map(|it| it.row(self.now)).collect();
            table(R::COLUMNS, &rows)
        })
    }

    pub async fn show<R: View + Readable>(&self, which: &str) -> Result<(), CliError> {
        self.print(&self.client.get::<R>(which).await?)
    }

    pub fn print<R: View>(&self, it: &R) -> Result<(), CliError> {
        self.out.object(it, |it| it.sheet(self.now).render())
    }

    /// Says in a line what happened to a resource; programs get the resource.
    pub fn said<R: View>(&self, it: &R, verb: &str) -> Result<(), CliError> {
        self.out.object(it, |it| sentence::<R>(it.label(), verb))
    }

    /// The same for one that is gone.
    pub fn said_gone<R: Resource>(&self, which: &str) -> Result<(), CliError> {
        if self.out.is_table() {
            super::out::write(sentence::<R>(which, "deleted").as_bytes())?;
        }
        Ok(())
    }
}

/// `vm web created`.
pub fn sentence<R: Resource>(which: &str, verb: &str) -> String {
    format!("{} {} {verb}\n", R::NOUN, super::text::clean(which))
}

/// A file's text; `-` is standard input.
pub fn read_text(path: &Path) -> Result<String, CliError> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    text.map_err(|e| CliError::failed(format!("cannot read {}: {e}", path.display()), ""))
}
