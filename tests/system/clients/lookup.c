/* Looks a name up with its C library: A, AAAA or BOTH by getaddrinfo, SRV by res_search. One answer a line. */
#define _GNU_SOURCE /* EAI_NODATA */
#include <arpa/inet.h>
#include <arpa/nameser.h>
#include <netdb.h>
#include <netinet/in.h>
#include <resolv.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static int addresses(const char *name, int family) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_family = family}, *found, *at;
    char text[INET6_ADDRSTRLEN];
    int failed = getaddrinfo(name, NULL, &hints, &found);
    if (failed) {
        int none = failed == EAI_NONAME;
#ifdef EAI_NODATA
        none |= failed == EAI_NODATA;
#endif
        puts(none ? "NONE" : gai_strerror(failed));
        return 0;
    }
    for (at = found; at; at = at->ai_next) {
        const void *address = at->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)at->ai_addr)->sin_addr
                                                       : (void *)&((struct sockaddr_in6 *)at->ai_addr)->sin6_addr;
        puts(inet_ntop(at->ai_family, address, text, sizeof text));
    }
    return 0;
}

static int services(const char *name) {
    static unsigned char bytes[65536];
    char target[NS_MAXDNAME];
    ns_msg message;
    ns_rr record;
    int at, length = res_search(name, ns_c_in, ns_t_srv, bytes, sizeof bytes);
    if (length < 0) {
        puts("NONE");
        return 0;
    }
    if (ns_initparse(bytes, length, &message)) return 1;
    for (at = 0; at < ns_msg_count(message, ns_s_an); at++) {
        if (ns_parserr(&message, ns_s_an, at, &record)) return 1;
        const unsigned char *data = ns_rr_rdata(record);
        if (dn_expand(bytes, bytes + length, data + 6, target, sizeof target) < 0) return 1;
        printf("%u %u %u %s\n", ns_get16(data), ns_get16(data + 2), ns_get16(data + 4), target);
    }
    return 0;
}

int main(int count, char **words) {
    if (count != 3) return 2;
    if (!strcmp(words[1], "SRV")) return services(words[2]);
    return addresses(words[2], !strcmp(words[1], "A") ? AF_INET : !strcmp(words[1], "AAAA") ? AF_INET6 : AF_UNSPEC);
}
