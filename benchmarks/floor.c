/* The floor: what receiving DICOM over TLS costs at least.

   Accepts a connection, decrypts, frames PDUs and PDVs, writes each data set behind an empty File Meta into a
   file, renames it and answers 0000H. A process for each association. Nothing else: no checks beyond what keeps
   it inside its folder and its buffers, no index, no queue, no log, no asynchronous operations.

   floor [-s] CERTIFICATE KEY TRUSTED FOLDER
     -s      fdatasync of the file and fsync of the folder before each answer
   floor -v  prints the version of OpenSSL
   It takes a free port of 127.0.0.1 and prints it. TLS 1.2 or 1.3; a client certificate is required. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ASSOCIATE_RQ = 1, ASSOCIATE_AC, P_DATA_TF = 4, RELEASE_RQ, RELEASE_RP }; /* PS3.8 9.3.1 */
enum { COMMAND = 1, LAST = 2 };                                                 /* PS3.8 E.2 */
enum { SPACE = 256 << 10, RECORD = 16 << 10, MAX_PDU = 128 << 10, FILE_META = 328, UID = 64 };

static SSL *tls;
static uint8_t space[SPACE]; /* plaintext that is not used yet lies from `used` up to `held` */
static size_t used, held;
static int durable, folder;

static _Noreturn void stop(const char *why) {
    fprintf(stderr, "floor: %s\n", why);
    _exit(1);
}

/* --- bytes in and out */

static void receive(void) {
    if (used == held) used = held = 0;
    if (SPACE - held < RECORD) {
        memmove(space, space + used, held - used);
        held -= used;
        used = 0;
    }
    int n = SSL_read(tls, space + held, (int)(SPACE - held));
    if (n <= 0) _exit(0); /* the peer has gone */
    held += (size_t)n;
}

static uint8_t *take(size_t n) {
    if (n > SPACE - RECORD) stop("a PDU is too long");
    while (held - used < n) receive();
    used += n;
    return space + used - n;
}

static void answer(const uint8_t *data, size_t n) {
    if (SSL_write(tls, data, (int)n) != (int)n) _exit(0);
}

static void store(int file, const uint8_t *data, size_t n) {
    while (n) {
        ssize_t done = write(file, data, n);
        if (done < 0) stop(strerror(errno));
        data += done;
        n -= (size_t)done;
    }
}

static uint32_t big32(const uint8_t *p) { return (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3]; }
static uint32_t little32(const uint8_t *p) { return (uint32_t)p[3] << 24 | p[2] << 16 | p[1] << 8 | p[0]; }
static size_t big16(const uint8_t *p) { return (size_t)p[0] << 8 | p[1]; }

static uint8_t *copy(uint8_t *to, const void *from, size_t n) { return (uint8_t *)memcpy(to, from, n) + n; }

static uint8_t *big32_to(uint8_t *to, uint32_t value) {
    value = htonl(value);
    return copy(to, &value, 4);
}

/* --- the association */

static uint8_t *item(uint8_t *to, uint8_t kind, const void *value, size_t n) {
    uint8_t head[4] = {kind, 0, (uint8_t)(n >> 8), (uint8_t)n};
    return copy(copy(to, head, 4), value, n);
}

/* A presentation context of the A-ASSOCIATE-AC (PS3.8 9.3.3.2): accepted, with the first transfer syntax. */
static uint8_t *accept_context(uint8_t *to, const uint8_t *proposed, size_t n) {
    uint8_t value[4 + 4 + UID] = {n ? proposed[0] : 0}, *end = value + 4;
    for (size_t at = 4; at + 4 <= n; at += 4 + big16(proposed + at + 2)) {
        size_t length = big16(proposed + at + 2);
        if (proposed[at] == 0x40 && length <= UID && at + 4 + length <= n) {
            end = item(end, 0x40, proposed + at + 4, length);
            break;
        }
    }
    return item(to, 0x21, value, (size_t)(end - value));
}

static void associate(size_t length) {
    const uint8_t *request = take(length);
    static uint8_t reply[6 + 68 + 128 * 80 + 128]; /* 128 contexts are the most there can be */
    uint8_t *to = copy(reply + 6, request, length < 68 ? length : 68);
    to = item(reply + 6 + 68, 0x10, "1.2.840.10008.3.1.1.1", 21);
    for (size_t at = 68; at + 4 <= length; at += 4 + big16(request + at + 2)) {
        size_t n = big16(request + at + 2);
        if (request[at] == 0x20 && at + 4 + n <= length && to - reply < (long)sizeof reply - 256)
            to = accept_context(to, request + at + 4, n);
    }
    uint8_t user[16], most[4];
    big32_to(most, MAX_PDU);
    uint8_t *end = item(user, 0x51, most, 4);
    end = item(end, 0x52, "2.25", 4);
    to = item(to, 0x50, user, (size_t)(end - user));
    reply[0] = ASSOCIATE_AC;
    reply[1] = 0;
    big32_to(reply + 2, (uint32_t)(to - reply - 6));
    answer(reply, (size_t)(to - reply));
}

/* --- one instance */

static struct {
    uint8_t bytes[64 << 10];
    size_t length;
    uint8_t message_id[2], sop_class[UID], uid[UID]; /* as they came, padding included */
    size_t sop_class_length, uid_length;
    char name[UID + 8], partial[UID + 8];
    int file;
} instance = {.file = -1};

static size_t value_of(uint8_t *to, size_t room, const uint8_t *value, size_t n) {
    if (n > room) stop("a value of the command is too long");
    memcpy(to, value, n);
    return n;
}

static void begin(void) {
    const uint8_t *command = instance.bytes;
    instance.uid_length = 0;
    for (size_t at = 0; at + 8 <= instance.length;) { /* Implicit VR Little Endian, group 0000 */
        unsigned element = command[at + 2] | command[at + 3] << 8;
        size_t n = little32(command + at + 4);
        const uint8_t *value = command + at + 8;
        if (n > instance.length - at - 8) stop("the command ends within an element");
        if (element == 0x0002) instance.sop_class_length = value_of(instance.sop_class, UID, value, n);
        if (element == 0x0110) value_of(instance.message_id, 2, value, n);
        if (element == 0x1000) instance.uid_length = value_of(instance.uid, UID, value, n);
        at += 8 + n;
    }
    instance.length = 0;
    int digits = (int)instance.uid_length;
    if (digits && !instance.uid[digits - 1]) digits--;
    for (int i = 0; i < digits; i++)
        if (instance.uid[i] != '.' && (instance.uid[i] < '0' || instance.uid[i] > '9')) stop("no UID");
    if (!digits) stop("no SOP instance UID");
    snprintf(instance.name, sizeof instance.name, "%.*s.dcm", digits, instance.uid);
    snprintf(instance.partial, sizeof instance.partial, "%.*s.part", digits, instance.uid);
    instance.file = open(instance.partial, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);
    if (instance.file < 0) stop(strerror(errno));
    static const uint8_t meta[FILE_META];
    store(instance.file, meta, FILE_META);
}

static uint8_t *element(uint8_t *to, unsigned number, const void *value, size_t n) {
    uint8_t head[8] = {0, 0, (uint8_t)number, (uint8_t)(number >> 8), (uint8_t)n, (uint8_t)(n >> 8)};
    return copy(copy(to, head, 8), value, n);
}

static void finish(uint8_t context) {
    if (durable && fdatasync(instance.file)) stop(strerror(errno));
    close(instance.file);
    instance.file = -1;
    if (rename(instance.partial, instance.name)) stop(strerror(errno));
    if (durable && fsync(folder)) stop(strerror(errno));

    uint8_t reply[512], *command = reply + 12, *to = command + 12; /* C-STORE-RSP, PS3.7 Table 9.3-2 */
    to = element(to, 0x0002, instance.sop_class, instance.sop_class_length);
    to = element(to, 0x0100, "\x01\x80", 2);
    to = element(to, 0x0120, instance.message_id, 2);
    to = element(to, 0x0800, "\x01\x01", 2);
    to = element(to, 0x0900, "\x00\x00", 2);
    to = element(to, 0x1000, instance.uid, instance.uid_length);
    uint8_t group_length[4] = {(uint8_t)(to - command - 12), (uint8_t)((to - command - 12) >> 8)};
    element(command, 0x0000, group_length, 4);
    reply[0] = P_DATA_TF;
    reply[1] = 0;
    big32_to(reply + 2, (uint32_t)(to - command + 6));
    big32_to(reply + 6, (uint32_t)(to - command + 2));
    reply[10] = context;
    reply[11] = COMMAND | LAST;
    answer(reply, (size_t)(to - reply));
}

static void data(size_t left) {
    while (left) {
        const uint8_t *head = take(6);
        size_t n = big32(head) - 2;
        uint8_t context = head[4], control = head[5];
        if (left < 6 || n > left - 6) stop("a PDV is longer than its PDU");
        left -= 6 + n;
        while (n) {
            if (used == held) receive();
            size_t some = held - used < n ? held - used : n;
            if (!(control & COMMAND)) {
                store(instance.file, space + used, some);
            } else if (some <= sizeof instance.bytes - instance.length) {
                memcpy(instance.bytes + instance.length, space + used, some);
                instance.length += some;
            } else {
                stop("a command is too long");
            }
            used += some;
            n -= some;
        }
        if (!(control & LAST)) continue;
        if (control & COMMAND) begin(); else finish(context);
    }
}

static _Noreturn void serve(SSL_CTX *context, int connection) {
    int on = 1;
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    tls = SSL_new(context);
    if (!tls || !SSL_set_fd(tls, connection) || SSL_accept(tls) <= 0) _exit(0);
    for (;;) {
        const uint8_t *head = take(6);
        int kind = head[0];
        size_t length = big32(head + 2);
        if (kind == P_DATA_TF) {
            data(length);
        } else if (kind == ASSOCIATE_RQ) {
            associate(length);
        } else if (kind == RELEASE_RQ) {
            static const uint8_t released[10] = {RELEASE_RP, 0, 0, 0, 0, 4};
            answer(released, sizeof released);
            _exit(0);
        } else {
            _exit(0);
        }
    }
}

/* --- start */

static SSL_CTX *tls_context(char **files) {
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    if (!context || !SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) ||
        SSL_CTX_use_certificate_chain_file(context, files[0]) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, files[1], SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_load_verify_locations(context, files[2], NULL) != 1) {
        ERR_print_errors_fp(stderr);
        return NULL;
    }
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_options(context, SSL_OP_NO_TICKET);
    SSL_CTX_set_num_tickets(context, 0);
    SSL_CTX_set_read_ahead(context, 1); /* several records with one read(2) */
    SSL_CTX_set_default_read_buffer_len(context, 128 << 10);
    return context;
}

int main(int count, char **words) {
    if (count == 2 && !strcmp(words[1], "-v")) {
        puts(OpenSSL_version(OPENSSL_VERSION_STRING));
        return 0;
    }
    if (count > 1 && !strcmp(words[1], "-s")) durable = 1;
    if (count != 5 + durable) {
        fprintf(stderr, "usage: floor [-s] CERTIFICATE KEY TRUSTED FOLDER\n");
        return 2;
    }
    SSL_CTX *context = tls_context(words + 1 + durable);
    if (!context) return 1;
    signal(SIGPIPE, SIG_IGN);
    folder = open(words[4 + durable], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (folder < 0 || fchdir(folder) || listener < 0 || bind(listener, (void *)&address, size) ||
        listen(listener, 1024) || getsockname(listener, (void *)&address, &size)) {
        perror("floor");
        return 1;
    }
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        while (waitpid(-1, NULL, WNOHANG) > 0) continue;
        if (connection < 0) continue;
        pid_t parent = getpid(), child = fork();
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGTERM);
            if (getppid() != parent) _exit(0);
            close(listener);
            serve(context, connection);
        }
        if (child < 0) perror("floor: fork");
        close(connection);
    }
}
