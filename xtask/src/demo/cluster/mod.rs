//! Three servers become one, and virtual machines move between them while they run.

mod answers;
mod crash;
mod disk;
mod drain;
mod fabric;
mod form;
mod guests;
mod servers;
mod stay;
mod ticks;
mod told;
mod tour;

use anyhow::Result;

use super::{Setting, import, say, step};
use crate::images;
use crate::steps::Steps;
use guests::Watch;
use servers::Servers;

pub fn all(setting: &Setting<'_>, steps: &mut Steps) -> Result<()> {
    step(steps, "guest image", || images::run(setting.workspace, &[images::Guest::Micro]))?;
    let mut servers = form::all(setting, steps)?;
    step(steps, "storage that all servers reach, beside each one's own", || share(&servers))?;
    step(steps, "import the images", || {
        let files = [import::KERNEL, import::INITRD];
        import::all(servers.first(), &images::cache_dir(setting.workspace), &files)
    })?;
    let mut watch = guests::all(&servers, steps)?;
    moves(&servers, &mut watch, steps)?;
    step(steps, "a server is drained for maintenance", || drain::all(&servers, &mut watch))?;
    step(steps, "a daemon is killed: its machines go on", || crash::all(&mut servers, &mut watch))?;
    step(steps, "nothing was lost", || sum_up(&servers, &mut watch))?;
    servers.check()?;
    if setting.exit { Ok(()) } else { stay::up(setting, &mut servers) }
}

fn share(servers: &Servers) -> Result<()> {
    say("A directory that all three have mounted, as NFS would be. Each server proves to the");
    say("others that it really is the same one.");
    let path = servers.shared.display().to_string();
    servers.first().basin(&["datastore", "create", "shared", "--path", &path, "--shared"])?;
    servers.until(1, &["datastore", "list"], |list| list.contains("3 of 3 servers")).map(drop)
}

fn moves(servers: &Servers, watch: &mut Watch, steps: &mut Steps) -> Result<()> {
    step(steps, "it writes to its disk from now on", || disk::write(servers))?;
    step(steps, "it moves round all servers; its disk is on storage that they share", || {
        say("The gap is the longest time without a tick, heard outside, of a guest that ticks");
        say("every 5 ms. The TCP answer is the longest that its friend waited for one: a packet");
        say("that is lost on the way is sent again after 200 ms, by TCP's own clock.");
        tour::round(servers, watch, |_, _| None)
    })?;
    step(steps, "again, and its disk moves along from server to server", || {
        let own = |n: usize| match n {
            0 => "default".to_owned(),
            n => format!("default-{}", servers.all[n].name),
        };
        tour::round(servers, watch, |to, last| Some(if last { "shared".into() } else { own(to) }))
    })
}

/// Of everything since the guest was started.
fn sum_up(servers: &Servers, watch: &mut Watch) -> Result<()> {
    disk::check(servers)?;
    watch.answers.wait(1)?;
    let told = watch.ticks.since(0)?;
    println!(
        "    {} ticks of one guest that was never started anew, {} of them lost on the way",
        told.last, told.lost
    );
    println!("    {} answers in order over one TCP connection", watch.answers.count);
    Ok(())
}
