//! `basin token`.

use basin_api::token::{Token, TokenCreate};
use clap::Subcommand;
use jiff::Timestamp;

use super::error::CliError;
use super::out;
use super::session::Session;
use super::table::Sheet;
use super::text::{age, parse_seconds};
use super::view::{View, meta_sheet, word};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a token; its secret is printed now and never again
    #[command(after_help = "Examples:
  basin token create laptop --expires-in 90d
  basin token create --join                        lets one more server into the cluster
  export BASIN_TOKEN=$(basin token create ci)      the secret alone goes to standard output")]
    Create {
        #[arg(required_unless_present = "join", conflicts_with = "join")]
        name: Option<String>,
        /// A token that lets one server join the cluster, for an hour unless it is said
        #[arg(long)]
        join: bool,
        /// After this time it is worth nothing, such as 12h or 90d; it lasts, when absent
        #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
        expires_in: Option<u64>,
        /// Words about it
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        description: String,
    },
    /// List tokens, without their secrets
    #[command(visible_alias = "ls")]
    List,
    /// Revoke a token, at once
    #[command(visible_alias = "rm")]
    Delete { token: String },
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        match self {
            Command::List => session.list::<Token>(&[].into()).await,
            Command::Delete { token } => {
                session.client.delete::<Token>(&token).await?;
                session.said_gone::<Token>(&token)
            }
            Command::Create { join: true, expires_in, .. } => {
                super::cluster::create_join_token(session, expires_in).await
            }
            Command::Create { name, expires_in, description, .. } => {
                let name = name.unwrap_or_default();
                let create = TokenCreate { name, description, expires_in_seconds: expires_in };
                let made = session.client.create::<Token>(&create).await?;
                if !session.out.is_table() {
                    return session.out.data(&made);
                }
                eprintln!("Keep it: it cannot be shown again.");
                out::line(&made.secret)
            }
        }
    }
}

impl View for Token {
    const COLUMNS: &[&str] = &["NAME", "ROLE", "EXPIRES", "AGE"];

    fn label(&self) -> &str {
        &self.meta.name
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.meta.name.clone(),
            word(&self.role),
            self.expires_at.clone().unwrap_or_else(|| "never".to_owned()),
            age(now, &self.meta.created_at),
        ]
    }

    fn sheet(&self, now: Timestamp) -> Sheet {
        let mut sheet = meta_sheet(&self.meta, now);
        sheet
            .pair("Role", word(&self.role))
            .pair("Expires", self.expires_at.as_deref().unwrap_or("never"));
        sheet
    }
}
