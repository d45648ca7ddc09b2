//! Three servers that stay up, for somebody to try them.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::guests::ROAMER;
use super::servers::Servers;
use crate::demo::forward::Forward;
use crate::demo::{Setting, server};
use crate::shell::quietly;

pub fn up(setting: &Setting<'_>, servers: &mut Servers) -> Result<()> {
    let first = &servers.all[0];
    let forward = Forward::start(&first.site.netns(), server::HTTPS)?;
    let made = quietly(first.runner.quiet_basin(&["token", "create", "demo"]))?;
    let token = String::from_utf8(made)?.trim().to_owned();
    let folder = setting.basin.parent().unwrap_or(Path::new("/")).display();
    println!("\nThe servers stay up until Ctrl-C. Try them as root in another terminal:\n");
    println!("    export PATH={folder}:$PATH");
    for member in &servers.all {
        println!("    alias {}='basin --socket {}'", member.name, member.site.socket().display());
    }
    println!(
        "\n    srv2 host list\n    srv3 vm migrate {ROAMER}\n    srv1 vm console {ROAMER}\n\
         \nor over HTTPS, with the variables\n\
         \n    BASIN_URL=https://{} BASIN_CA={} BASIN_TOKEN={token}\n\
         \nwhere srv1 answers; so do the others at 10.99.0.2 and 10.99.0.3, in their network:\n\
         \n    nsenter --net={} ping 10.99.0.2\n",
        forward.address(),
        first.site.state_dir().join("cluster/tls/ca.pem").display(),
        servers.fabric.netns().display(),
    );
    while !setting.stop.asked() {
        servers.check()?;
        std::thread::sleep(Duration::from_millis(200));
    }
    println!();
    Ok(())
}
