#include <stdio.h>

int main(void)
{
    puts("life");
    return 0;
}
