/* The server that knows the truth: it streams token events at a fixed rate and logs when it sent each of them.
 *
 *   truth_server PORT SEED TTFT_MIN_MS TTFT_MEAN_MS EVENTS_PER_S EVENTS LOG_FILE
 *
 * A request is answered at once with the head of the response; its first token follows after TTFT_MIN plus an
 * exponential time (mean TTFT_MEAN - TTFT_MIN, cut at 5 means), the others at the fixed rate. One thread, epoll, a heap
 * of due times, one timerfd. A late tick is logged as it happened: truth is what was sent, not what was planned.
 *
 * GET /log writes LOG_FILE and forgets: int64 requests, int64 gaps, then per request five doubles (received, first
 * token sent, last sent, events, widest gap; CLOCK_MONOTONIC seconds), then the gaps between token events as floats.
 * GET anything else answers as a server with one model `m` does. Port 0 chooses a free one; it is printed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FD = 65536, IN_BYTES = 1 << 17 };

typedef struct {
    int fd, got, left, place; /* place in the heap, -1: not there */
    double due, received, first, last, widest;
    char *in;
} Conn;

static Conn *conns[MAX_FD];
static Conn *heap[MAX_FD];
static int heap_size, epoll_fd, timer_fd;
static double ttft_min_s, ttft_more_s, period_s;
static int events;
static const char *log_file;
static uint64_t rng;

static double *requests;
static float *gaps;
static size_t n_requests, room_requests, n_gaps, room_gaps;

static const char HEAD[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
static const char TOKEN[] =
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m\","
    "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
static const char FINISH[] =
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m\","
    "\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"length\"}]}\n\n";
static char token[1024], ending[2048];
static int token_bytes, ending_bytes;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double uniform(void) { /* xorshift64*, in (0, 1) */
    rng ^= rng >> 12;
    rng ^= rng << 25;
    rng ^= rng >> 27;
    return ((double)((rng * 2685821657736338717ULL) >> 11) + 0.5) / 9007199254740992.0;
}

static void *grown(void *array, size_t used, size_t *room, size_t each) {
    if (used < *room) return array;
    *room = *room ? 2 * *room : 4096;
    array = realloc(array, *room * each);
    if (!array) exit(1);
    return array;
}

/* ------------------------------------------------------------------------------------------------------- due times */
static void put(int place, Conn *c) {
    heap[place] = c;
    c->place = place;
}

static void sift(int place, Conn *c) {
    while (place > 0 && heap[(place - 1) / 2]->due > c->due) {
        put(place, heap[(place - 1) / 2]);
        place = (place - 1) / 2;
    }
    for (;;) {
        int child = 2 * place + 1;
        if (child >= heap_size) break;
        if (child + 1 < heap_size && heap[child + 1]->due < heap[child]->due) child++;
        if (heap[child]->due >= c->due) break;
        put(place, heap[child]);
        place = child;
    }
    put(place, c);
}

static void schedule(Conn *c, double due) {
    c->due = due;
    sift(c->place < 0 ? heap_size++ : c->place, c);
}

static void unschedule(Conn *c) {
    if (c->place < 0) return;
    Conn *last = heap[--heap_size];
    int place = c->place;
    c->place = -1;
    if (last != c) sift(place, last);
}

/* --------------------------------------------------------------------------------------------------------- answers */
static void note_request(Conn *c) {
    requests = grown(requests, n_requests, &room_requests, 5 * sizeof *requests);
    double *row = requests + 5 * n_requests++;
    row[0] = c->received, row[1] = c->first, row[2] = c->last, row[3] = events - c->left, row[4] = c->widest;
}

static void drop(Conn *c) {
    unschedule(c);
    if (c->left > 0) note_request(c);
    conns[c->fd] = NULL;
    close(c->fd);
    free(c->in);
    free(c);
}

static int say(Conn *c, const char *text, int bytes) { /* a reader that cannot take 64 KB is dropped */
    return send(c->fd, text, (size_t)bytes, MSG_NOSIGNAL) == bytes;
}

static void tick(Conn *c) {
    double at = now_s();
    if (c->left == events) {
        c->first = at;
    } else {
        gaps = grown(gaps, n_gaps, &room_gaps, sizeof *gaps);
        if (at - c->last > c->widest) c->widest = at - c->last;
        gaps[n_gaps++] = (float)(at - c->last);
    }
    c->last = at;
    c->left--;
    int sent = c->left ? say(c, token, token_bytes) : say(c, ending, ending_bytes);
    if (!sent) {
        c->left += c->left == 0;
        drop(c);
    } else if (c->left) {
        double due = c->due + period_s;
        schedule(c, due > at ? due : at + period_s); /* an engine that is late does not hurry afterwards */
    } else {
        note_request(c);
        unschedule(c);
    }
}

static void write_log(void) {
    FILE *out = fopen(log_file, "wb");
    int64_t counts[2] = {(int64_t)n_requests, (int64_t)n_gaps};
    if (!out || fwrite(counts, sizeof counts, 1, out) != 1) exit(1);
    fwrite(requests, 5 * sizeof *requests, n_requests, out);
    fwrite(gaps, sizeof *gaps, n_gaps, out);
    fclose(out);
    n_requests = n_gaps = 0;
}

static int reply(Conn *c, const char *body) {
    char text[1024];
    int bytes = snprintf(text, sizeof text,
                         "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                         strlen(body), body);
    return say(c, text, bytes);
}

static int answer(Conn *c, const char *body) {
    if (!strncmp(c->in, "GET /log", 8)) {
        write_log();
        return reply(c, "{}");
    }
    if (!strncmp(c->in, "GET", 3))
        return reply(c, "{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\"model\",\"created\":1,"
                        "\"owned_by\":\"truth\",\"max_model_len\":8192}]}");
    if (!strstr(body, "\"stream\":true") && !strstr(body, "\"stream\": true"))
        return reply(c, "{\"id\":\"1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,"
                        "\"message\":{\"role\":\"assistant\",\"content\":\"ok\"},\"finish_reason\":\"length\"}],"
                        "\"usage\":{\"prompt_tokens\":8,\"completion_tokens\":1,\"total_tokens\":9}}");
    c->received = now_s();
    c->first = c->last = c->widest = 0;
    c->left = events;
    double more = -log(uniform()) * ttft_more_s;
    schedule(c, c->received + ttft_min_s + (more < 5 * ttft_more_s ? more : 5 * ttft_more_s));
    return say(c, HEAD, sizeof HEAD - 1);
}

static int take_request(Conn *c) { /* 0: not complete; -1: give up */
    c->in[c->got] = 0;
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end) return c->got >= IN_BYTES - 1 ? -1 : 0;
    char *length = strcasestr(c->in, "\r\ncontent-length:");
    int wanted = (int)(end + 4 - c->in) + (length && length < end ? atoi(length + 17) : 0);
    if (wanted >= IN_BYTES) return -1;
    if (c->got < wanted) return 0;
    if (c->left > 0) return -1; /* no pipelining */
    if (!answer(c, end + 4)) return -1;
    memmove(c->in, c->in + wanted, (size_t)(c->got - wanted));
    c->got -= wanted;
    return 1;
}

static void readable(Conn *c) {
    ssize_t n = recv(c->fd, c->in + c->got, (size_t)(IN_BYTES - 1 - c->got), 0);
    if (n <= 0) {
        if (n < 0 && errno == EAGAIN) return;
        drop(c);
        return;
    }
    c->got += (int)n;
    int taken;
    while ((taken = take_request(c)) > 0) {}
    if (taken < 0) drop(c);
}

static void accept_all(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_FD) exit(1);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        Conn *c = calloc(1, sizeof *c);
        if (!c || !(c->in = malloc(IN_BYTES))) exit(1);
        c->fd = fd;
        c->place = -1;
        conns[fd] = c;
        struct epoll_event watch = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &watch);
    }
}

static void set_timer(void) {
    struct itimerspec at = {0};
    if (heap_size) {
        at.it_value.tv_sec = (time_t)heap[0]->due;
        at.it_value.tv_nsec = (long)((heap[0]->due - floor(heap[0]->due)) * 1e9);
    }
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

int main(int argc, char **argv) {
    if (argc != 8) return 2;
    rng = 88172645463325252ULL ^ ((uint64_t)atoll(argv[2]) * 1099511628211ULL);
    ttft_min_s = atof(argv[3]) / 1e3;
    ttft_more_s = atof(argv[4]) / 1e3 - ttft_min_s;
    period_s = 1.0 / atof(argv[5]);
    events = atoi(argv[6]);
    log_file = argv[7];
    token_bytes = sprintf(token, "%zx\r\n%s\r\n", sizeof TOKEN - 1, TOKEN);
    char usage[256];
    int usage_bytes = sprintf(usage,
                              "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
                              "\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":8,\"completion_tokens\":%d,"
                              "\"total_tokens\":%d}}\n\n", events, events + 8);
    ending_bytes = sprintf(ending, "%s%zx\r\n%s\r\n%x\r\n%s\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n", token,
                           sizeof FINISH - 1, FINISH, (unsigned)usage_bytes, usage);
    prctl(PR_SET_TIMERSLACK, 1);
    prctl(PR_SET_PDEATHSIG, 15);

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof where;
    if (bind(listener, (struct sockaddr *)&where, size) || listen(listener, 4096)) return 1;
    getsockname(listener, (struct sockaddr *)&where, &size);
    printf("%d\n", ntohs(where.sin_port));
    fflush(stdout);

    epoll_fd = epoll_create1(0);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event watch = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &watch);
    watch.data.fd = timer_fd;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &watch);
    struct epoll_event ready[256];
    for (;;) {
        set_timer();
        int n = epoll_wait(epoll_fd, ready, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            uint64_t ticks;
            if (fd == listener) accept_all(listener);
            else if (fd == timer_fd) { if (read(timer_fd, &ticks, sizeof ticks) < 0) continue; }
            else if (conns[fd]) readable(conns[fd]);
        }
        double now = now_s();
        while (heap_size && heap[0]->due <= now) tick(heap[0]);
    }
}
