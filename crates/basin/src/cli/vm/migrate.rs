//! `basin vm migrate`.

use basin_api::vm::{Postcopy, Vm, VmMigrate};
use clap::{Args, ValueEnum};

use crate::cli::error::CliError;
use crate::cli::follow::Wait;
use crate::cli::session::Session;
use crate::cli::text::{parse_milliseconds, parse_size};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  basin vm migrate web                           to the server with the most room
  basin vm migrate web --to srv2
  basin vm migrate web --to srv2 --storage ssd2  its disks move along
  basin vm migrate web --bandwidth 100MiB --downtime 50ms
  basin vm migrate db --postcopy fallback        where it writes faster than the link

The guest runs on meanwhile, and stands still for a moment at the end. Whatever fails, it
runs once: where it was, or where it goes. Ctrl-C leaves the move going on; cancel it with
'basin task cancel'.")]
pub struct MigrateArgs {
    vm: String,
    /// Where to; the server with the most room when absent
    #[arg(long, value_name = "HOST")]
    to: Option<String>,
    /// Move its disks along to this datastore
    #[arg(long, value_name = "DATASTORE")]
    storage: Option<String>,
    /// Take no more of the link: bytes a second, such as 100MiB
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    bandwidth: Option<u64>,
    /// How long it may stand still without anybody minding
    #[arg(long, value_name = "TIME", value_parser = parse_milliseconds)]
    downtime: Option<u64>,
    /// How long it may stand still where less cannot be had
    #[arg(long, value_name = "TIME", value_parser = parse_milliseconds)]
    most_downtime: Option<u64>,
    /// Whether it may go before all of its memory. If the link breaks then, it stands still
    /// until the link is mended
    #[arg(long, value_enum, value_name = "never|fallback|at-once", default_value_t)]
    #[arg(hide_possible_values = true)]
    postcopy: PostcopyArg,
    /// If it cannot be moved within these limits it stays; else it stands still for longer
    #[arg(long)]
    or_stay: bool,
    /// Do not slow it down if it writes faster than the link
    #[arg(long)]
    no_throttle: bool,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum PostcopyArg {
    #[default]
    Never,
    Fallback,
    AtOnce,
}

/// `100MiB` or `100MiB/s`.
fn parse_rate(text: &str) -> Result<u64, String> {
    parse_size(text.strip_suffix("/s").unwrap_or(text))
}

impl MigrateArgs {
    pub async fn run(self, session: &Session) -> Result<(), CliError> {
        let how = self.request();
        let task = session.client.migrate_vm(&self.vm, &how).await?;
        session.finish::<Vm>(task, self.wait, "moved").await
    }

    fn request(&self) -> VmMigrate {
        VmMigrate {
            host: self.to.clone(),
            datastore: self.storage.clone(),
            bandwidth_bytes_per_second: self.bandwidth,
            downtime_ms: self.downtime,
            most_downtime_ms: self.most_downtime,
            no_throttle: self.no_throttle,
            postcopy: match self.postcopy {
                PostcopyArg::Never => Postcopy::Never,
                PostcopyArg::Fallback => Postcopy::Fallback,
                PostcopyArg::AtOnce => Postcopy::AtOnce,
            },
            or_stay: self.or_stay,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: MigrateArgs,
    }

    fn check(line: &str, expect: VmMigrate) {
        let words = std::iter::once("migrate").chain(line.split_whitespace());
        assert_eq!(Line::try_parse_from(words).expect(line).args.request(), expect, "{line}");
    }

    #[test]
    fn what_the_flags_mean() {
        check("web", VmMigrate::default());
        let somewhere = VmMigrate {
            host: Some("srv2".to_owned()),
            datastore: Some("ssd2".to_owned()),
            ..VmMigrate::default()
        };
        check("web --to srv2 --storage ssd2 --detach", somewhere);
        let limited = VmMigrate {
            bandwidth_bytes_per_second: Some(100 << 20),
            downtime_ms: Some(50),
            most_downtime_ms: Some(2000),
            no_throttle: true,
            postcopy: Postcopy::AtOnce,
            or_stay: true,
            ..VmMigrate::default()
        };
        let flags = "web --bandwidth 100MiB/s --downtime 50ms --most-downtime 2s --no-throttle \
                     --postcopy at-once --or-stay";
        check(flags, limited);
    }
}
