//! Names, descriptions and labels: the same commands for every noun that has them.

use std::collections::BTreeMap;

use basin_api::client::Patchable;
use basin_api::reference::MetaPatch;
use clap::Subcommand;

use super::error::CliError;
use super::session::Session;
use super::spec::{LabelChange, parse_label_change};
use super::view::View;

#[derive(Debug, Subcommand)]
pub enum MetaCommand {
    /// Give it another name
    Rename { which: String, new_name: String },
    /// Set the text that describes it
    Describe { which: String, text: String },
    /// Set labels (KEY=VALUE) and remove labels (KEY-)
    #[command(after_help = "Example:
  basin vm label web tier=gold owner=ops old-")]
    Label {
        which: String,
        #[arg(required = true, value_name = "KEY=VALUE | KEY-", value_parser = parse_label_change)]
        changes: Vec<LabelChange>,
    },
}

impl MetaCommand {
    pub async fn run<R: Patchable + View>(self, session: &Session) -> Result<(), CliError> {
        let (which, patch, verb) = match self {
            MetaCommand::Rename { which, new_name } => {
                (which, MetaPatch { name: Some(new_name), ..MetaPatch::default() }, "renamed")
            }
            MetaCommand::Describe { which, text } => {
                (which, MetaPatch { description: Some(text), ..MetaPatch::default() }, "described")
            }
            MetaCommand::Label { which, changes } => {
                let labels: BTreeMap<_, _> =
                    changes.into_iter().map(|LabelChange(k, v)| (k, v)).collect();
                (which, MetaPatch { labels, ..MetaPatch::default() }, "labelled")
            }
        };
        session.said(&session.client.patch::<R>(&which, &patch.into()).await?, verb)
    }
}
