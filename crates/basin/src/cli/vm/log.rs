//! `basin vm log`.

use clap::Args;

use crate::cli::error::CliError;
use crate::cli::out;
use crate::cli::session::Session;
use crate::cli::text::parse_size;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  basin vm log web | tail -50
  basin vm log web -f                           go on, until Ctrl-C")]
pub struct LogArgs {
    vm: String,
    /// Print this much of its end
    #[arg(long, value_name = "SIZE", value_parser = parse_size, conflicts_with = "follow")]
    tail: Option<u64>,
    /// Go on with what the console shows from now on
    #[arg(short, long)]
    follow: bool,
}

impl LogArgs {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        if !self.follow {
            return out::write(&session.client.console_log(&self.vm, self.tail).await?);
        }
        let mut console = session.client.console(&self.vm).await?;
        while let Some(shown) = console.output.next().await? {
            out::write(&shown)?;
        }
        Ok(())
    }
}
