/* Where the SDK's native library leaves its events, on its own threads, without Python's interpreter.
 *
 * A callback in Python has each of these threads wait for the interpreter, and the interpreter's thread for
 * them; with requests to answer meanwhile, that costs as much as a third of the requests that it could answer.
 * Here an event is copied, and the first one since the last look wakes the interpreter's thread by a pipe.
 *
 * Compiled without Python's headers, for ctypes (inbox.py). There is one for a process, as there is one library.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Bytes of room that are kept for the next events; a burst of big ones may have taken more. */
#define KEPT (1024 * 1024)

typedef struct {
    uint8_t *data; /* of each event its size, a uint64_t, and the event */
    size_t size;
    size_t room;
} Events;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Events arriving;
static Events taken;
static int woken;
static int ends[2] = {-1, -1};

/* The end of the pipe to wait at for events, or -1. */
int inbox_open(void)
{
    if (ends[0] >= 0)
        return ends[0];
    int opened[2];
    if (pipe(opened) != 0)
        return -1;
    for (int end = 0; end < 2; end++) {
        fcntl(opened[end], F_SETFL, O_NONBLOCK);
        fcntl(opened[end], F_SETFD, FD_CLOEXEC);
    }
    ends[1] = opened[1];
    ends[0] = opened[0];
    return ends[0];
}

/* The library's callback: whatever thread calls it is not held up by anything but other events. */
void inbox_put(const uint8_t *event, size_t size)
{
    uint64_t prefix = size;
    pthread_mutex_lock(&lock);
    size_t needed = arriving.size + sizeof prefix + size;
    if (needed > arriving.room) {
        arriving.room = needed * 2;
        arriving.data = realloc(arriving.data, arriving.room);
        if (arriving.data == NULL)
            abort(); /* as Rust does: without this event a text would be lost without a word */
    }
    memcpy(arriving.data + arriving.size, &prefix, sizeof prefix);
    if (size > 0)
        memcpy(arriving.data + arriving.size + sizeof prefix, event, size);
    arriving.size = needed;
    int wakes = !woken;
    woken = 1;
    pthread_mutex_unlock(&lock);
    if (wakes && write(ends[1], "", 1) != 1)
        abort(); /* one byte at most is in the pipe: it has room, and both its ends are ours */
}

/* How many bytes of events have arrived since the last call. They are at `*events` until the next one. */
size_t inbox_take(const uint8_t **events)
{
    char byte;
    pthread_mutex_lock(&lock);
    if (woken && read(ends[0], &byte, 1) == 1)
        woken = 0;
    if (taken.room > KEPT) {
        free(taken.data);
        taken = (Events){0};
    }
    Events empty = taken;
    taken = arriving;
    arriving = empty;
    arriving.size = 0;
    pthread_mutex_unlock(&lock);
    *events = taken.data;
    return taken.size;
}
