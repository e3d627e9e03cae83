/* Preload: names below .example are asked of a name server that never answers, and no address is. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
    static int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    if (name && strlen(name) > 8 && !strcmp(name + strlen(name) - 8, ".example")) {
        sleep(60);
        return EAI_AGAIN;
    }
    if (!real)
        real = dlsym(RTLD_NEXT, "getaddrinfo");
    return real(name, service, hints, found);
}
