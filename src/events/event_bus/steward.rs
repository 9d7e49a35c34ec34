//! A steward: sees to the lanes of one subscription. It takes leases that are free until it has its share, holds them, gives up what is over its share, and
//! ends everything in order.
//!
//! A share is the number of lanes by the number of processes, rounded up; every process says that it is there by a lease of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use nats::jetstream::consumer::PullConsumer;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::lane::{Charge, Common, Lane};
use super::leases::{Lease, Leases};
use super::subject::partition;

/// How often it is looked whether a lane has ended, while that is waited for.
const LOOK: Duration = Duration::from_millis(20);

/// One lane that somebody has to serve.
pub(super) struct Post {
    pub(super) consumer: PullConsumer,
    /// The subject of its lease.
    pub(super) lease: String,
}

/// A lane of ours.
struct Served {
    lease: Lease,
    charge: watch::Sender<Charge>,
    task: JoinHandle<()>,
}

pub(super) struct Steward {
    common: Arc<Common>,
    leases: Leases,
    posts: Vec<Post>,
    /// Where it begins to look for a free one.
    from: usize,
    /// The subjects of all leases of the durable, and of our own presence.
    all: String,
    here: String,
    /// What those of others begin with.
    present: String,
    presence: Option<Lease>,
    served: HashMap<usize, Served>,
    stop: watch::Receiver<bool>,
}

impl Steward {
    pub(super) fn new(common: Arc<Common>, leases: Leases, posts: Vec<Post>, member: &str, stop: watch::Receiver<bool>) -> Self {
        let subject = |what: &str| common.subjects.lease(&common.durable, what);
        let (all, here, present) = (subject(">"), subject(&format!("m.{member}")), subject("m."));
        let from = usize::from(partition(member, posts.len() as u16));
        Self { common, leases, posts, from, all, here, present, presence: None, served: HashMap::new(), stop }
    }

    /// The body of its task; ends when all lanes have.
    pub(super) async fn run(mut self) {
        let mut turn_at = Instant::now();
        loop {
            let is_stopping = *self.stop.borrow() || self.stop.has_changed().is_err();
            if is_stopping {
                self.served.values().for_each(|served| stop(&served.charge));
            }
            self.let_go().await;
            if is_stopping && self.served.is_empty() {
                break;
            }
            if Instant::now() >= turn_at {
                turn_at = Instant::now() + self.leases.turn();
                self.hold().await;
                if !is_stopping && let Err(error) = self.share().await {
                    tracing::debug!(durable = %self.common.durable, %error, "leases cannot be looked at");
                }
            }
            let is_ending = self.served.values().any(|served| served.charge.borrow().is_stopping);
            let pause = turn_at.saturating_duration_since(Instant::now());
            tokio::select! {
                () = sleep(if is_ending { pause.min(LOOK) } else { pause }) => {}
                changed = self.stop.changed(), if !is_stopping => drop(changed),
            }
        }
        if let Some(presence) = self.presence {
            self.leases.give_up(presence).await;
        }
    }

    /// Gives up the leases of lanes that have ended.
    async fn let_go(&mut self) {
        let ended: Vec<usize> = self.served.iter().filter(|(_, served)| served.task.is_finished()).map(|(post, _)| *post).collect();
        for post in ended {
            let served = self.served.remove(&post).expect("it was found there");
            if let Err(error) = served.task.await {
                tracing::error!(durable = %self.common.durable, %error, "a lane has ended with a panic");
            }
            self.leases.give_up(served.lease).await;
        }
        self.common.counts.partitions.store(self.served.len() as u64);
    }

    /// Writes all that we hold again.
    async fn hold(&mut self) {
        self.presence = match self.presence {
            Some(lease) => self.leases.renew(&self.here, lease).await.unwrap_or(Some(lease)),
            None => self.leases.take(&self.here).await.unwrap_or(None),
        };
        let mut renewals = tokio::task::JoinSet::new();
        for (&post, served) in &self.served {
            let (leases, subject, lease) = (self.leases.clone(), self.posts[post].lease.clone(), served.lease);
            renewals.spawn(async move { (post, leases.renew(&subject, lease).await) });
        }
        while let Some(renewed) = renewals.join_next().await {
            let (post, renewed) = renewed.expect("a renewal has no panic in it");
            let served = self.served.get_mut(&post).expect("none is removed meanwhile");
            match renewed {
                Ok(Some(lease)) => {
                    served.lease = lease;
                    served.charge.send_modify(|charge| charge.until = lease.until);
                }
                // What runs is finished; nothing begins.
                Ok(None) => {
                    tracing::warn!(durable = %self.common.durable, lease = self.posts[post].lease, "a lease was lost");
                    stop(&served.charge);
                }
                // It holds until its end, and is tried again before.
                Err(error) => tracing::debug!(durable = %self.common.durable, %error, "a lease cannot be renewed now"),
            }
        }
    }

    /// Takes what is free, or gives up what is too much.
    async fn share(&mut self) -> Result<(), String> {
        let held = self.leases.view(&self.all).await?;
        let members = held.iter().filter(|subject| subject.starts_with(&self.present)).count().max(1);
        let share = self.posts.len().div_ceil(members);
        let staying: Vec<usize> =
            self.served.iter().filter(|(_, served)| !served.charge.borrow().is_stopping).map(|(post, _)| *post).collect();
        for post in staying.iter().skip(share) {
            stop(&self.served[post].charge);
        }
        // Each process looks from another place on, so that they seldom want the same.
        let mut wanted = share.saturating_sub(self.served.len());
        for post in (0..self.posts.len()).map(|post| (self.from + post) % self.posts.len()) {
            let subject = &self.posts[post].lease;
            if wanted == 0 {
                break;
            }
            if held.contains(subject) || self.served.contains_key(&post) {
                continue;
            }
            if let Some(lease) = self.leases.take(subject).await? {
                let (charge, charged) = watch::channel(Charge { until: lease.until, is_stopping: false });
                let lane = Lane::run(Arc::clone(&self.common), self.posts[post].consumer.clone(), charged);
                self.served.insert(post, Served { lease, charge, task: tokio::spawn(lane) });
                wanted -= 1;
            }
        }
        self.common.counts.partitions.store(self.served.len() as u64);
        Ok(())
    }
}

fn stop(charge: &watch::Sender<Charge>) {
    charge.send_if_modified(|charge| !std::mem::replace(&mut charge.is_stopping, true));
}
