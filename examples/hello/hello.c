#include <stdio.h>

int main(int argc, char **argv) {
    printf("Hello, %s, from a root filesystem of one file.\n", argc > 1 ? argv[1] : "you");
    return 0;
}
