/* The bound: what a client costs that does nothing but read, find events and take the time.
 *
 *   bound_client PORT STREAMS SECONDS
 *
 * Closed loop over STREAMS connections, one thread, epoll. Prints JSON: requests, events, the quantiles of TTFT and of
 * the gaps, CPU seconds. A request starts when its bytes are written; an event is stamped when it is read.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct { int fd, events, kept; double started, last; char tail[8]; } Conn;

static double *ttfts;
static float *gaps;
static size_t n_ttfts, n_gaps, room_ttfts, room_gaps;
static char request[1024];
static int request_bytes;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *grown(void *array, size_t used, size_t *room, size_t each) {
    if (used < *room) return array;
    *room = *room ? 2 * *room : 4096;
    array = realloc(array, *room * each);
    if (!array) exit(1);
    return array;
}

static void begin(Conn *c) {
    c->events = c->kept = 0;
    c->started = now_s();
    if (send(c->fd, request, (size_t)request_bytes, MSG_NOSIGNAL) != request_bytes) exit(1);
}

static void event(Conn *c, double at) {
    if (c->events++ == 0) {
        ttfts = grown(ttfts, n_ttfts, &room_ttfts, sizeof *ttfts);
        ttfts[n_ttfts++] = at - c->started;
    } else {
        gaps = grown(gaps, n_gaps, &room_gaps, sizeof *gaps);
        gaps[n_gaps++] = (float)(at - c->last);
    }
    c->last = at;
}

static int by_double(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int by_float(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    int streams = atoi(argv[2]), epoll_fd = epoll_create1(0), on = 1;
    double until = now_s() + atof(argv[3]);
    const char *body = "{\"model\":\"m\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]}";
    request_bytes = sprintf(request, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n%s",
                            strlen(body), body);
    Conn *conns = calloc((size_t)streams, sizeof *conns);
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1]))};
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < streams; i++) {
        Conn *c = conns + i;
        c->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(c->fd, (struct sockaddr *)&where, sizeof where)) return 1;
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct epoll_event watch = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &watch);
        begin(c);
    }
    size_t done = 0;
    struct epoll_event ready[256];
    static char in[65536 + 8];
    while (now_s() < until) {
        int n = epoll_wait(epoll_fd, ready, 256, 100);
        for (int i = 0; i < n; i++) {
            Conn *c = ready[i].data.ptr;
            memcpy(in, c->tail, (size_t)c->kept);
            ssize_t got = recv(c->fd, in + c->kept, 65536, 0);
            double at = now_s();
            if (got <= 0) return 1;
            char *end = in + c->kept + got, *from = in, *hit;
            int over = 0;
            while ((hit = memmem(from, (size_t)(end - from), "ntent\":\"", 8))) {
                event(c, at);
                from = hit + 8;
            }
            over = memmem(in, (size_t)(end - in), "\r\n0\r\n\r\n", 7) != NULL;
            c->kept = end - from < 7 ? (int)(end - from) : 7;
            memcpy(c->tail, end - c->kept, (size_t)c->kept);
            if (over) {
                done++;
                begin(c);
            }
        }
    }
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    qsort(ttfts, n_ttfts, sizeof *ttfts, by_double);
    qsort(gaps, n_gaps, sizeof *gaps, by_float);
    if (!n_ttfts || !n_gaps) return 1;
    printf("{\"requests\": %zu, \"events\": %zu, \"ttft_p50_s\": %.6f, \"ttft_p99_s\": %.6f, \"itl_p99_s\": %.6f, "
           "\"cpu_s\": %.4f}\n", done, n_ttfts + n_gaps, ttfts[n_ttfts / 2], ttfts[n_ttfts * 99 / 100],
           gaps[n_gaps * 99 / 100],
           (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + 1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec));
}
