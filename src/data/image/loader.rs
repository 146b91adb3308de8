//! Decodes images in advance on worker threads and yields them in the order of the requests.

use std::collections::VecDeque;
use std::iter::Fuse;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::{
    ImageRef,
    preprocess::{Preprocess, SquareImage, load_image},
};
use crate::error::{Error, Result};

/// An image to decode, with the channel for the result.
struct Job {
    image: ImageRef,
    result: SyncSender<Result<SquareImage>>,
}

/// Yields `(key, image)` for each `(key, image)` of `requests`, in order.
///
/// At most `ahead` images are in flight: requested and not yet yielded. `requests` is advanced on the thread that
/// calls `next`; worker threads only decode. Dropping the loader stops each worker after its current image.
#[derive(Debug)]
pub struct Loader<I, K> {
    requests: Fuse<I>,
    ahead: usize,
    waiting: VecDeque<(K, ImageRef, Receiver<Result<SquareImage>>)>,
    jobs: Option<Sender<Job>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl<K, I: Iterator<Item = (K, ImageRef)>> Loader<I, K> {
    /// Starts `threads` workers that decode up to `ahead` images in advance.
    ///
    /// # Errors
    /// If `threads` or `ahead` is 0, or a thread cannot be started.
    pub fn new(
        requests: impl IntoIterator<IntoIter = I>,
        preprocess: Preprocess,
        threads: usize,
        ahead: usize,
    ) -> Result<Self> {
        if threads == 0 || ahead == 0 {
            return Err(Error::invalid(format!(
                "decoding needs at least one thread and one image in advance, not {threads} and {ahead}"
            )));
        }
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let stop = Arc::new(AtomicBool::new(false));
        let mut loader = Self {
            requests: requests.into_iter().fuse(),
            ahead,
            waiting: VecDeque::new(),
            jobs: Some(jobs),
            stop: Arc::clone(&stop),
            threads: Vec::new(),
        };
        for number in 0..threads.min(ahead) {
            let (queue, stop) = (Arc::clone(&queue), Arc::clone(&stop));
            let thread = std::thread::Builder::new()
                .name(format!("decode-{number}"))
                .spawn(move || work(&queue, &stop, &preprocess))
                .map_err(|error| Error::invalid(format!("cannot start a decoding thread: {error}")))?;
            loader.threads.push(thread);
        }
        loader.request_ahead();
        Ok(loader)
    }

    fn request_ahead(&mut self) {
        while self.waiting.len() < self.ahead {
            let Some((key, image)) = self.requests.next() else { return };
            let (result, receiver) = sync_channel(1);
            if let Some(jobs) = &self.jobs {
                // Sending fails only if all workers are gone, which the receiver reports.
                let _ = jobs.send(Job { image: image.clone(), result });
            }
            self.waiting.push_back((key, image, receiver));
        }
    }
}

impl<K, I: Iterator<Item = (K, ImageRef)>> Iterator for Loader<I, K> {
    type Item = (K, Result<SquareImage>);

    fn next(&mut self) -> Option<Self::Item> {
        let (key, image, receiver) = self.waiting.pop_front()?;
        let decoded =
            receiver.recv().unwrap_or_else(|_| Err(image.refuse("its decoding thread ended unexpectedly")));
        self.request_ahead();
        Some((key, decoded))
    }
}

impl<I, K> Drop for Loader<I, K> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A panic of the worker was already reported through its image.
            let _ = thread.join();
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>, stop: &AtomicBool, preprocess: &Preprocess) {
    loop {
        // The lock is held while waiting: one worker waits for a job, the others for the lock.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // The receiver is gone if the loader was dropped meanwhile.
        let _ = job.result.send(load_image(&job.image, preprocess));
    }
}
